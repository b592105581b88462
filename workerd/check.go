package workerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Limits of what a Worker tells about itself.
const (
	maxReport  = 64 << 10
	reportWait = 5 * time.Second
)

// A Report is what a Worker turned out to be when it was started.
type Report struct {
	Handlers      []string // of the default export or of addEventListener: "fetch", "scheduled", …
	NamedHandlers []string // the other exports that can be entered by name
	Took          time.Duration
}

// events are the handlers that there are, in the order in which they are told.
var events = []string{"fetch", "scheduled", "queue", "email", "tail", "tailStream", "trace", "alarm", "connect", "test"}

// Check starts a version once, apart from everything, and ends it. What workerd
// has against it is a *StartError.
func (r *Runtime) Check(ctx context.Context, w Worker) (Report, error) {
	if err := dated(w.CompatibilityDate, time.Now()); err != nil {
		return Report{}, err
	}
	begun := time.Now()
	p, err := r.launch(ctx.Done(), &w, extras{report: true})
	if err != nil {
		return Report{}, err
	}
	report := Report{Took: time.Since(begun)}
	err = p.report(ctx, &report)
	p.kill("") // it has nothing to finish
	<-p.dead
	if err != nil && ctx.Err() == nil { // what it exports cannot be looked at
		return Report{}, &StartError{Text: "The exports of the Worker cannot be read: " + err.Error()}
	}
	return report, err
}

// report asks the copy that tells what the Worker has. It is the user's code that
// answers: what it says is bounded, and believed only for itself.
func (p *process) report(ctx context.Context, into *Report) error {
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	var said struct{ Handlers, Named []string }
	if err := p.ask(ctx, "/", &said); err != nil {
		return err
	}
	for _, event := range events {
		if slices.Contains(said.Handlers, event) {
			into.Handlers = append(into.Handlers, event)
		}
	}
	into.NamedHandlers = said.Named
	return nil
}

// ask sends a request to the second socket of the process, where something of
// ours answers.
func (p *process) ask(ctx context.Context, path string, answer any) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.path("ctl"))
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ctl"+path, nil)
	if err != nil {
		return err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxReport+1))
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d", res.StatusCode)
	case len(body) > maxReport:
		return errors.New("the answer is too long")
	}
	return json.Unmarshal(body, answer)
}

// The copy of a module that reports: what can be entered are objects with
// handlers, and classes, whose methods stand in their prototypes.
const reportModule = `import * as all from %s;
const events = %s;
const found = {handlers: [], named: []};
for (const name of Object.keys(all)) {
	const value = all[name], kind = typeof value;
	const target = kind == "function" ? value.prototype : kind == "object" ? value : null;
	if (!target) continue;
	const handlers = events.filter(event => event in target && typeof Object.getOwnPropertyDescriptor(target, event)?.get != "function" && typeof target[event] == "function");
	if (name == "default") found.handlers = handlers;
	else if (kind == "function" || handlers.length) found.named.push(name);
}
export default {fetch() { return Response.json(found) }};
`

// What goes before a service worker, on its first line: handlers are counted,
// ours answers.
const reportScript = `{const add = self.addEventListener.bind(self), all = []; self.addEventListener = (type, ...more) => { all.push(String(type)); if (type != "fetch") add(type, ...more) }; add("fetch", e => e.respondWith(Response.json({handlers: all})))}; `

// reportCode is the code of the copy that reports; the files of the Worker are
// there already.
func reportCode(w *Worker, all files) string {
	if w.ServiceWorker {
		all["report"] = append([]byte(reportScript), w.Modules[0].Content...)
		return "  serviceWorkerScript = embed \"report\",\n"
	}
	name := "nearkey-report.js"
	for slices.ContainsFunc(w.Modules, func(m Module) bool { return m.Name == name }) {
		name = "x" + name
	}
	main, _ := json.Marshal("/" + strings.TrimPrefix(w.Main, "/"))
	known, _ := json.Marshal(events)
	all["report"] = fmt.Appendf(nil, reportModule, main, known)
	return fmt.Sprintf("  modules = [\n    (name = %s, esModule = embed \"report\"),\n%s  ],\n", quote(name), configureModules(w, all))
}
