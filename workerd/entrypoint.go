package workerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	maxEntrypoints = 50 // that are entered by name, of one Worker
	maxEntryName   = 256
)

var errEntrypoint = errors.New("the Worker has no such entrypoint")

// entrypointName reports whether an export may be called so.
func entrypointName(name string) bool {
	return name != "" && len(name) <= maxEntryName && !strings.ContainsAny(name, "\n\r\x00")
}

// enterBy enters a process that can be entered by an entrypoint. A process has a
// socket for each one that was asked for, so the first to ask has it replaced.
func (s *script) enterBy(ctx context.Context, entrypoint string) (*process, error) {
	if entrypoint == "" {
		return s.enter(ctx)
	}
	if !entrypointName(entrypoint) {
		return nil, errEntrypoint
	}
	for {
		if !slices.Contains(s.wanted().named(), entrypoint) {
			if err := s.adjust(ctx, func(more *extras) { more.add(entrypoint) }); err != nil {
				return nil, noEntrypoint(entrypoint, err)
			}
		}
		p, err := s.enter(ctx)
		if err != nil {
			return nil, noEntrypoint(entrypoint, err)
		}
		if p.doors[entrypoint] != nil {
			return p, nil
		}
		p.leave() // replaced, or started before it was asked for
		if err := s.adjust(ctx, func(more *extras) { more.add(entrypoint) }); err != nil {
			return nil, noEntrypoint(entrypoint, err)
		}
	}
}

// add adds an entrypoint; of too many all others are forgotten.
func (e *extras) add(entrypoint string) {
	names := e.named()
	if slices.Contains(names, entrypoint) {
		return
	}
	if len(names) >= maxEntrypoints {
		e.entrypoints = ""
	}
	e.entrypoints += entrypoint + "\n"
}

// forgetEntrypoints leaves out entrypoints with which no process started: whoever
// wants one that there is asks again. s.mu is held.
func (s *script) forgetEntrypoints(more extras) {
	if s.more.entrypoints == more.entrypoints {
		s.more.entrypoints = ""
	}
}

func noEntrypoint(entrypoint string, err error) error {
	var fault *StartError
	if errors.As(err, &fault) && strings.Contains(fault.Text, "entrypoint") {
		return fmt.Errorf("%w: %s", errEntrypoint, entrypoint)
	}
	return err
}
