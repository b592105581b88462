package wire_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/wire"
)

func TestNamespacesLimit(t *testing.T) {
	url := serve(t, wire.HandlerConfig{Store: memory.New()})
	for n, want := range map[int]int{kv.MaxNamespaces: http.StatusOK, kv.MaxNamespaces + 1: http.StatusBadRequest} {
		body := "\x12" + strings.Repeat("n", 16) + uvarint(n)
		if status, text := post(t, "POST", url+"/wire/v1/namespaces", int64(len(body)), strings.NewReader(body)); status != want {
			t.Errorf("%d namespaces: %d %q", n, status, text)
		}
	}
	client := dial(t, wire.ClientConfig{URL: url})
	for _, limit := range []int{-1, 0, kv.MaxNamespaces + 1} {
		if found, err := client.Namespaces(t.Context(), kv.NamespaceID{}, limit); err != nil || len(found) != 0 {
			t.Errorf("a limit of %d: %v, %v", limit, found, err)
		}
	}
}

// TestProcessThatDoesNotListNamespaces: what an older process does not know, and
// what its store cannot do, is not supported.
func TestProcessThatDoesNotListNamespaces(t *testing.T) {
	older := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		// the answer of the first version to an operation that it does not know
		text := `operation "namespaces": not supported by this store`
		w.Header().Set("Nearkey-Wire", "1")
		w.WriteHeader(http.StatusNotImplemented)
		_, _ = fmt.Fprintf(w, "%c\x06%c%s\x00", len(text)+3, len(text), text)
	}))
	defer older.Close()
	unable := serve(t, wire.HandlerConfig{Store: struct{ kv.Store }{memory.New()}})
	for what, url := range map[string]string{"an older process": older.URL, "a store without the ability": unable} {
		if _, err := kv.Namespaces(t.Context(), dial(t, wire.ClientConfig{URL: url}), kv.NamespaceID{}, 1); !errors.Is(err, kv.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDamagedValueCrosses(t *testing.T) {
	store := answering{memory.New(), func(context.Context, kv.Ref, time.Duration) (kv.Answer, error) {
		return kv.Answer{}, fmt.Errorf("get: %w", kv.ErrDamaged)
	}}
	if _, err := dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: store})}).Get(t.Context(), k, 0); !errors.Is(err, kv.ErrDamaged) || errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("a damaged value: %v", err)
	}
}
