package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Ack says which of a gateway's providers have a write of a namespace when it is
// acknowledged.
type Ack string

// The choices of a namespace.
const (
	AckDefault Ack = ""      // as the gateway is configured
	AckFirst   Ack = "first" // the first that has it; the others get it later
	AckBoth    Ack = "both"  // all that count
)

// ParseAck reads what a user writes; "default" is AckDefault.
func ParseAck(s string) (Ack, error) {
	switch s {
	case "first", "both":
		return Ack(s), nil
	case "default":
		return AckDefault, nil
	}
	return "", invalid("acknowledgement %q: want first, both or default", s)
}

func (a Ack) String() string {
	if a == AckDefault {
		return "default"
	}
	return string(a)
}

// Acks answers from memory how writes of a namespace are acknowledged. What is
// changed through it holds at once; what another process changes, at latest after
// CacheFor; while the database fails, what was known goes on to hold.
type Acks struct {
	catalog *Catalog
	log     *slog.Logger

	chosen atomic.Pointer[map[kv.NamespaceID]Ack] // those that are not AckDefault; never changed
	change sync.Mutex                             // guards that chosen is replaced in the order of what was read
}

// NewAcks returns the choices as the database has them.
func NewAcks(ctx context.Context, c *Catalog, log *slog.Logger) (*Acks, error) {
	a := &Acks{catalog: c, log: log}
	return a, a.load(ctx)
}

// Of returns the choice of a namespace. It waits for nothing.
func (a *Acks) Of(id kv.NamespaceID) Ack { return (*a.chosen.Load())[id] }

// Run keeps the choices up to date until ctx ends.
func (a *Acks) Run(ctx context.Context) error {
	tick := time.NewTicker(CacheFor)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := a.load(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			a.log.Warn("catalog: how writes are acknowledged cannot be read; what was known goes on to hold", "error", err)
		}
		failing = err != nil
	}
}

// load reads all choices. They are few: who chooses otherwise than the gateway.
func (a *Acks) load(ctx context.Context) error {
	a.change.Lock()
	defer a.change.Unlock()
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	chosen := map[kv.NamespaceID]Ack{}
	_, err := all(ctx, a.catalog.db.read, func(row scanner) (struct{}, error) {
		var id, ack string
		if err := row.Scan(&id, &ack); err != nil {
			return struct{}{}, err
		}
		ns, err := kv.ParseNamespaceID(id)
		chosen[ns] = Ack(ack)
		return struct{}{}, err
	}, `select id, ack from namespaces where ack <> ''`)
	if err != nil {
		return failure(ctx, "read how writes are acknowledged", err)
	}
	a.chosen.Store(&chosen)
	return nil
}

// Get returns the choice of a namespace as the database has it.
func (a *Acks) Get(ctx context.Context, id kv.NamespaceID) (Ack, error) {
	var ack string
	err := a.catalog.db.read.QueryRowContext(ctx, `select ack from namespaces where id = $1`, id.String()).Scan(&ack)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return Ack(ack), failure(ctx, "namespace "+id.String(), err)
}

// Set chooses for a namespace.
func (a *Acks) Set(ctx context.Context, id kv.NamespaceID, ack Ack) error {
	doing := fmt.Sprintf("acknowledge writes of namespace %s by %s", id, ack)
	if ack != AckDefault && ack != AckFirst && ack != AckBoth {
		return fmt.Errorf("%s: %w", doing, invalid("want first, both or default"))
	}
	a.change.Lock()
	defer a.change.Unlock()
	made := func() {
		next := map[kv.NamespaceID]Ack{id: ack}
		for other, chosen := range *a.chosen.Load() {
			if other != id {
				next[other] = chosen
			}
		}
		a.chosen.Store(&next)
	}
	return a.catalog.change(ctx, doing, made, func(tx *sql.Tx) error {
		return one(ctx, tx, `update namespaces set ack = $1 where id = $2`, string(ack), id.String())
	})
}
