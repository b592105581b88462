package kv

import "context"

// ReserveBytes is the size from which on a store that is about to read a value
// into memory asks for it with Reserve. Smaller values are not worth the asking.
const ReserveBytes = 128 << 10

type reserverKey struct{}

// WithReserver returns a context whose request asks reserve before it takes n
// bytes of memory for a value. The owner of the request (the door) bounds what
// all requests hold, answers beyond it with an error that wraps ErrOverloaded,
// and takes the bytes back when the request ends.
func WithReserver(ctx context.Context, reserve func(n int64) error) context.Context {
	return context.WithValue(ctx, reserverKey{}, reserve)
}

// Reserve asks the door of ctx's request for n bytes. It returns nil if there is
// no door: then the caller of the store bounds its memory itself.
func Reserve(ctx context.Context, n int64) error {
	if reserve, ok := ctx.Value(reserverKey{}).(func(int64) error); ok {
		return reserve(n)
	}
	return nil
}
