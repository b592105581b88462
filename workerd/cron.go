package workerd

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// An Outcome is how a call of a handler ended: "ok", "exception", "exceededCpu",
// "exceededMemory", or another word of workerd's.
type Outcome struct {
	Outcome string `json:"outcome"`
	NoRetry bool   `json:"noRetry"` // the Worker asked not to be called again for this
}

// scheduledModule calls the user's handler. Only Workers in the same process can.
const scheduledModule = `export default {async fetch(r, env) {
	const asked = new URL(r.url).searchParams;
	return Response.json(await env.USER.scheduled({scheduledTime: new Date(Number(asked.get("at"))), cron: asked.get("cron")}));
}};
`

// oursDate is the compatibility date of what is ours.
const oursDate = "2025-01-01"

func scheduledCode(all files) string {
	all["scheduled"] = []byte(scheduledModule)
	return fmt.Sprintf(`(
  modules = [(name = "ctl", esModule = embed "scheduled")],
  compatibilityDate = %s,
  compatibilityFlags = ["service_binding_extra_handlers"],
  bindings = [(name = "USER", service = "user")],
  globalOutbound = "egress",
);
`, quote(oursDate))
}

// Scheduled calls the scheduled handler of a Worker, for a tick of a cron, and
// returns when it and what it left to waitUntil have ended. An error means that
// the Worker was not heard of to the end: it may have been called or not.
func (r *Runtime) Scheduled(ctx context.Context, name, cron string, at time.Time) (Outcome, error) {
	s := r.script(name, false)
	if s == nil {
		return Outcome{}, ErrNotFound
	}
	p, err := s.enterScheduled(ctx)
	if err != nil {
		return Outcome{}, err
	}
	defer p.leave()
	s.count(tallyRequests, 1)
	p.progress.Add(1) // what was used before is not this call's
	defer p.progress.Add(1)
	query := url.Values{"cron": {cron}, "at": {strconv.FormatInt(at.UnixMilli(), 10)}}
	var outcome Outcome
	if err := p.ask(ctx, "/?"+query.Encode(), &outcome); err != nil {
		s.count(tallyExceptions, 1)
		switch reason, _ := p.fate(ctx); reason {
		case overCPU:
			return Outcome{Outcome: "exceededCpu"}, nil
		case overMemory:
			return Outcome{Outcome: "exceededMemory"}, nil
		}
		return Outcome{}, fmt.Errorf("call a scheduled handler: %w", err)
	}
	if outcome.Outcome != "ok" {
		s.count(tallyExceptions, 1)
		if p.swollen() != "" {
			outcome.Outcome = "exceededMemory"
		}
	}
	return outcome, nil
}

// enterScheduled enters a process in which crons can be called: from the first one
// on, every process of the Worker is such.
func (s *script) enterScheduled(ctx context.Context) (*process, error) {
	for {
		if err := s.adjust(ctx, func(more *extras) { more.scheduled = true }); err != nil {
			return nil, err
		}
		p, err := s.enter(ctx)
		if err != nil {
			return nil, err
		}
		if p.more.scheduled {
			return p, nil
		}
		p.leave() // it was replaced in between
	}
}
