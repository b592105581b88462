package workerd

import (
	"context"
	"errors"
	"fmt"
)

// tailModule sends what happened to Options.Events. It is a Worker of its own: the
// user's neither sees it nor can call it. workerd bounds what one event tells.
const tailModule = `export default {async tail(events, env) {
	await env.EVENTS.fetch("http://events/", {method: "POST", body: JSON.stringify(events)});
}};
`

func tailCode(all files) string {
	all["tail"] = []byte(tailModule)
	return fmt.Sprintf(`(
  modules = [(name = "tail", esModule = embed "tail")],
  compatibilityDate = %s,
  bindings = [(name = "EVENTS", service = "events")],
  globalOutbound = "egress",
);
`, quote(oursDate))
}

// Trace begins, or ends, to send what happens in a Worker to Options.Events. What
// runs is replaced, without the loss of a request, as by a deploy. Each event
// costs several times what the request does, so it is for those who look.
func (r *Runtime) Trace(ctx context.Context, name string, on bool) error {
	if r.opts.Events == "" {
		return errors.New("trace a Worker: nothing takes the events")
	}
	s := r.script(name, false)
	if s == nil {
		return ErrNotFound
	}
	return s.adjust(ctx, func(more *extras) { more.trace = on })
}
