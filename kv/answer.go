package kv

import (
	"context"
	"fmt"
	"time"
)

// Answer is a record with what the store knows of how it came by it. A leaf
// knows nothing: its answers are of age 0 and of no cache.
type Answer struct {
	Record

	// Age bounds how stale the record may be: no write of the key that was
	// acknowledged longer ago than Age is newer.
	Age time.Duration

	// Cache is how the tier nearest to the caller answered.
	Cache CacheStatus
}

// CacheStatus is how a tier came by an answer, in the words of the
// CF-Cache-Status header.
type CacheStatus string

// The statuses of a tier's answers. A store that is no tier answers with NoCache.
const (
	NoCache CacheStatus = ""
	Hit     CacheStatus = "HIT"     // near had it, fresh enough
	Miss    CacheStatus = "MISS"    // near did not have it
	Expired CacheStatus = "EXPIRED" // near had it, too old or superseded; far was asked
	Stale   CacheStatus = "STALE"   // far failed; near's copy, older than was asked for
)

type answerer interface {
	GetAnswer(ctx context.Context, ref Ref, maxAge time.Duration) (Answer, error)
}

// GetAnswer reads as Store.Get does and tells the answer's age and cache status,
// if the store knows them.
func GetAnswer(ctx context.Context, s Store, ref Ref, maxAge time.Duration) (Answer, error) {
	if a, ok := s.(answerer); ok {
		return a.GetAnswer(ctx, ref, maxAge)
	}
	rec, err := s.Get(ctx, ref, maxAge)
	return Answer{Record: rec}, err
}

type manyAnswerer interface {
	GetAnswers(ctx context.Context, refs []Ref, maxAge time.Duration) ([]Answer, error)
}

// GetAnswers reads as GetMany does and tells each answer's age and cache status.
func GetAnswers(ctx context.Context, s Store, refs []Ref, maxAge time.Duration) ([]Answer, error) {
	if m, ok := s.(manyAnswerer); ok {
		return m.GetAnswers(ctx, refs, maxAge)
	}
	recs, err := GetMany(ctx, s, refs, maxAge)
	if err != nil {
		return nil, err
	}
	answers := make([]Answer, len(recs))
	for i, rec := range recs {
		answers[i].Record = rec
	}
	return answers, nil
}

type awaiter interface {
	AwaitChange(ctx context.Context, after Cursor) error
}

// AwaitChange returns when the store's change log has a change after the cursor,
// or no longer has the cursor at all; Changes then tells which. When ctx ends it
// returns an error that wraps ctx.Err().
// A store without the ability returns an error that wraps ErrUnsupported.
func AwaitChange(ctx context.Context, s Store, after Cursor) error {
	if a, ok := s.(awaiter); ok {
		return a.AwaitChange(ctx, after)
	}
	return fmt.Errorf("await changes: %w", ErrUnsupported)
}
