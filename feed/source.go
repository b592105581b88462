package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// retryEvery is how long a Source waits after its store failed; pollEvery, how
// often it looks if the store cannot wake it.
const (
	retryEvery = 250 * time.Millisecond
	pollEvery  = 20 * time.Millisecond
)

// Source tails the change log of a store of this process into a hub.
type Source struct {
	store  kv.Store
	hub    *Hub
	logger *slog.Logger
}

// NewSource returns a Source; nothing happens before Run. A nil logger logs
// nothing.
func NewSource(store kv.Store, hub *Hub, logger *slog.Logger) *Source {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Source{store: store, hub: hub, logger: logger}
}

// Run tails until ctx ends and then returns nil. It returns an error if the store
// has no change log. Other failures of the store are logged and waited for:
// meanwhile the hub's knowledge stands still.
func (s *Source) Run(ctx context.Context) error {
	var cursor kv.Cursor
	failing := false
	for ctx.Err() == nil {
		next, err := s.step(ctx, cursor)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kv.ErrUnsupported):
			return fmt.Errorf("tail the change log: %w", err)
		case errors.Is(err, kv.ErrCursorGone):
			s.logger.Warn("the change log has begun anew; readers of the feed begin anew as well", "error", err)
			cursor = kv.Cursor{}
			continue
		case err != nil:
			if !failing {
				s.logger.Error("tail the change log", "error", err)
			}
			failing = true
			sleep(ctx, retryEvery)
			continue
		}
		cursor, failing = next, false
	}
	return nil
}

// step publishes what comes after the cursor, or waits if there is nothing. The
// moment that the hub is current as of is read before the head of the log is.
func (s *Source) step(ctx context.Context, cursor kv.Cursor) (kv.Cursor, error) {
	asOf := time.Now()
	_, head, err := kv.Changes(ctx, s.store, kv.Cursor{}, 1)
	if err != nil {
		return cursor, err
	}
	if cursor == (kv.Cursor{}) {
		s.hub.Open(head, asOf)
		return head, nil
	}
	changes, next, err := kv.Changes(ctx, s.store, cursor, kv.MaxChanges)
	if err != nil {
		return cursor, err
	}
	if next.Seq < head.Seq {
		asOf = time.Time{}
	}
	s.hub.Publish(changes, next, asOf)
	if len(changes) > 0 {
		return next, nil
	}
	return next, s.await(ctx, next)
}

// await waits for a change, but no longer than until a heartbeat is due.
func (s *Source) await(ctx context.Context, cursor kv.Cursor) error {
	waiting, cancel := context.WithTimeout(ctx, HeartbeatEvery)
	defer cancel()
	err := kv.AwaitChange(waiting, s.store, cursor)
	switch {
	case err == nil || waiting.Err() != nil:
		return nil
	case errors.Is(err, kv.ErrUnsupported):
		sleep(ctx, pollEvery)
		return nil
	}
	return err
}

// sleep waits unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
