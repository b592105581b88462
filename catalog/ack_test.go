package catalog

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/nearkey/nearkey/kv"
)

func newAcks(t *testing.T, c *Catalog) *Acks {
	t.Helper()
	a, err := NewAcks(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAcks(t *testing.T) {
	c, path := newCatalog(t)
	a, n := newAcks(t, c), createNamespace(t, c, "n")
	if got := a.Of(n.ID); got != AckDefault {
		t.Errorf("a new namespace: %s", got)
	}
	for _, ack := range []Ack{AckBoth, AckFirst, AckDefault, AckBoth} {
		if err := a.Set(t.Context(), n.ID, ack); err != nil {
			t.Fatal(err)
		}
		got, err := a.Get(t.Context(), n.ID)
		if of := a.Of(n.ID); err != nil || got != ack || of != ack {
			t.Errorf("set to %s: the database has %s, memory %s (%v)", ack, got, of, err)
		}
	}
	if got := newAcks(t, openAt(t, path)).Of(n.ID); got != AckBoth {
		t.Errorf("opened again: %s", got)
	}
	if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Get(t.Context(), n.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("get of a deleted namespace: %v", err)
	}
	if err := a.Set(t.Context(), kv.NamespaceID{1}, AckBoth); !errors.Is(err, ErrNotFound) || a.Of(kv.NamespaceID{1}) != AckDefault {
		t.Errorf("set of a namespace that does not exist: %v", err)
	}
	if err := a.Set(t.Context(), n.ID, "most"); !errors.Is(err, ErrInvalid) {
		t.Errorf("set to what there is not: %v", err)
	}
}

// TestAcksOfAnotherProcess: what another process chose is known after CacheFor,
// and goes on to be known without the database.
func TestAcksOfAnotherProcess(t *testing.T) {
	c, path := newCatalog(t)
	n := createNamespace(t, c, "n")
	here, there := newAcks(t, c), newAcks(t, openAt(t, path))
	if err := there.Set(t.Context(), n.ID, AckBoth); err != nil {
		t.Fatal(err)
	}
	if err := here.load(t.Context()); err != nil || here.Of(n.ID) != AckBoth {
		t.Errorf("%s, %v", here.Of(n.ID), err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := here.load(t.Context()); !errors.Is(err, ErrUnavailable) || here.Of(n.ID) != AckBoth {
		t.Errorf("without the database: %s, %v", here.Of(n.ID), err)
	}
}

func TestAcksRunEnds(t *testing.T) {
	c, _ := newCatalog(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- newAcks(t, c).Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestParseAck(t *testing.T) {
	for _, ack := range []Ack{AckDefault, AckFirst, AckBoth} {
		if got, err := ParseAck(ack.String()); err != nil || got != ack {
			t.Errorf("%s: %s, %v", ack, got, err)
		}
	}
	for _, text := range []string{"", "most", "FIRST"} {
		if _, err := ParseAck(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
