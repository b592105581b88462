package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"path/filepath"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
)

// openProxy opens a provider behind the wire, with its administration and health
// checks beside it.
func (m *Main) openProxy(ctx context.Context, s *service) error {
	if err := prepareData(s.config); err != nil {
		return err
	}
	token, err := m.secret("NEARKEY_API_TOKEN", s.config.APITokenFile, filepath.Join(s.config.Data, tokenFileName))
	if err != nil {
		return fmt.Errorf("root API token: %w", err)
	}
	missing := func(ref kv.Ref) { // the gateway finds out when it reads or verifies
		s.logger.Warn("a value is missing in the bucket; 'nearkey verify --values --repair' on the centre brings it back", "namespace", ref.Namespace)
	}
	providers, shards, err := s.openProviders(ctx, missing)
	if err != nil {
		return err
	}
	own := providers[0]
	listener, err := s.listenAPI(ctx, maxConnections)
	if err != nil {
		return err
	}
	s.metrics.Build(buildVersion())
	ready := func() error { return anyUp(shards[own.Name].Status()) }
	around := s.administered(admin.Config{
		Logger: s.logger, IsRoot: isToken(token), Shards: map[string]admin.Shards{own.Name: divided{shards[own.Name]}},
	})
	s.enter(listener, httpServer{s.httpServer(around(health(ready, s.metrics))), nil})
	return s.openWire(ctx, own.Store, nil)
}

// isToken reports of every token whether it is the one.
func isToken(token string) func(context.Context, string) (bool, error) {
	want := sha256.Sum256([]byte(token))
	return func(_ context.Context, shown string) (bool, error) {
		got := sha256.Sum256([]byte(shown))
		return subtle.ConstantTimeCompare(want[:], got[:]) == 1, nil
	}
}

// anyUp returns nil if a cluster answers: one that is down fails its own keys alone.
func anyUp(status proxy.ShardsStatus) error {
	if status.Refusal != "" {
		return fmt.Errorf("%w: %s", kv.ErrUnavailable, status.Refusal)
	}
	last := ""
	for _, c := range status.Clusters {
		if c.Up {
			return nil
		}
		last = c.Error
	}
	return fmt.Errorf("%w: no cluster answers: %s", kv.ErrUnavailable, last)
}
