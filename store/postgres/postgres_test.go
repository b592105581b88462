package postgres

import (
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

func mustOpen(t testing.TB, url string, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestLaws(t *testing.T) {
	url := newURL(t)
	kvtest.Run(t, func(t *testing.T) kv.Store { return mustOpen(t, url, Options{}) })
}

func TestLawsOfPortableStore(t *testing.T) {
	url := newURL(t)
	kvtest.Run(t, func(t *testing.T) kv.Store { return mustOpen(t, url, Options{Portable: true, MaxConns: 2}) })
}

func TestLawsOfStoreWithChangeLog(t *testing.T) {
	url := newURL(t)
	kvtest.Run(t, func(t *testing.T) kv.Store {
		return mustOpen(t, url, Options{Outbox: true, PollEvery: time.Millisecond})
	})
}
