package wire_test

import (
	"net/http/httptest"
	"testing"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/wire"
)

var secret = []byte("a secret of enough bytes")

// serve puts a handler before a store on loopback and returns the URL.
func serve(t testing.TB, c wire.HandlerConfig) string {
	t.Helper()
	if c.Secret == nil {
		c.Secret = secret
	}
	h := wire.NewHandler(c)
	server := httptest.NewServer(h)
	t.Cleanup(func() {
		h.EndFeeds()
		server.Close()
	})
	return server.URL
}

func dial(t testing.TB, c wire.ClientConfig) *wire.Client {
	t.Helper()
	if c.Secret == nil {
		c.Secret = secret
	}
	client := wire.NewClient(c)
	t.Cleanup(client.Close)
	return client
}

func TestLawsOverMemory(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.Store {
		return dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: memory.New()})})
	})
}

func TestLawsOverDisk(t *testing.T) {
	for _, law := range kvtest.Laws() {
		switch law.Name {
		case "read your write", "large values", "awkward keys", "many at once", "forget only that tombstone", "drop only that namespace":
		default:
			continue
		}
		t.Run(law.Name, func(t *testing.T) {
			store, err := disk.Open(t.TempDir(), disk.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = store.Close() })
			law.Check(t, kvtest.NewSubject(dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: store})}), 1))
		})
	}
}
