package kvtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Fault is what happens to one call.
type Fault int

// The faults. Every failure comes in two ways, and a caller cannot tell which.
const (
	None           Fault = iota
	Refused              // an error, and nothing was done
	Unacknowledged       // an error, but it was done
	Hang                 // nothing is done, and no answer until the context ends
)

// Op names a method of a store.
type Op string

// The operations that a Faulty store asks about.
const (
	OpGet     Op = "get"
	OpPut     Op = "put"
	OpList    Op = "list"
	OpGetMany Op = "get many"
	OpPutMany Op = "put many"
)

// ErrInjected is the cause of every error that a Faulty store makes up.
var ErrInjected = errors.New("injected fault")

// Faulty is a store that fails on demand. Its zero value is not usable: Store
// and Inject must be set, and not changed while it is in use.
type Faulty struct {
	Store  kv.Store
	Inject func(op Op, ref kv.Ref) Fault // called once for each call, before it; ref is zero for calls on many keys
}

var _ kv.Store = (*Faulty)(nil)

// do runs one call under the fault that Inject chooses.
func (f *Faulty) do(ctx context.Context, op Op, ref kv.Ref, call func() error) error {
	switch f.Inject(op, ref) {
	case Refused:
		return fmt.Errorf("%s: %w: %w", op, kv.ErrUnavailable, ErrInjected)
	case Unacknowledged:
		if err := call(); err != nil {
			return err
		}
		return fmt.Errorf("%s: %w: %w", op, kv.ErrUnknown, ErrInjected)
	case Hang:
		<-ctx.Done()
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	return call()
}

// Get implements kv.Store.
func (f *Faulty) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (rec kv.Record, err error) {
	err = f.do(ctx, OpGet, ref, func() error { rec, err = f.Store.Get(ctx, ref, maxAge); return err })
	if err != nil {
		return kv.Record{}, err
	}
	return rec, nil
}

// Put implements kv.Store.
func (f *Faulty) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	return f.do(ctx, OpPut, ref, func() error { return f.Store.Put(ctx, ref, rec) })
}

// List implements kv.Store.
func (f *Faulty) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	err = f.do(ctx, OpList, kv.Ref{Namespace: ns}, func() error { page, err = f.Store.List(ctx, ns, opts); return err })
	if err != nil {
		return kv.Page{}, err
	}
	return page, nil
}

// GetMany implements the ability of kv.GetMany.
func (f *Faulty) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) (recs []kv.Record, err error) {
	err = f.do(ctx, OpGetMany, kv.Ref{}, func() error { recs, err = kv.GetMany(ctx, f.Store, refs, maxAge); return err })
	if err != nil {
		return nil, err
	}
	return recs, nil
}

// PutMany implements the ability of kv.PutMany.
func (f *Faulty) PutMany(ctx context.Context, writes []kv.Write) error {
	return f.do(ctx, OpPutMany, kv.Ref{}, func() error { return kv.PutMany(ctx, f.Store, writes) })
}

// Forget implements the ability of kv.Forget, without faults.
func (f *Faulty) Forget(ctx context.Context, tombs []kv.Tomb) error {
	return kv.Forget(ctx, f.Store, tombs)
}

// Drop implements the ability of kv.Drop, without faults.
func (f *Faulty) Drop(ctx context.Context, ns kv.NamespaceID) error {
	return kv.Drop(ctx, f.Store, ns)
}

// Changes implements the ability of kv.Changes, without faults.
func (f *Faulty) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	return kv.Changes(ctx, f.Store, after, limit)
}

// AwaitChange implements the ability of kv.AwaitChange, without faults.
func (f *Faulty) AwaitChange(ctx context.Context, after kv.Cursor) error {
	return kv.AwaitChange(ctx, f.Store, after)
}
