package hot

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"sync/atomic"
	"time"
)

const (
	// RightFor is how long a right is used before the Authorizer is asked again,
	// if its epoch stays the same.
	RightFor = 5 * time.Second
	// rightSets and rightWays bound how many rights are kept.
	rightSets, rightWays = 1024, 4
	// maxPrefixBytes is the greatest right that is kept.
	maxPrefixBytes = 4096
)

// digest is what is kept of a token, with the account and the namespace.
type digest [sha256.Size]byte

// entry is the right that a digest gives. It is never changed.
type entry struct {
	digest   digest
	prefixes []string
	until    time.Time
	epoch    uint64
}

// valid reports whether the right is one at now.
func (e *entry) valid(now time.Time, epoch uint64) bool {
	return e.epoch == epoch && now.Before(e.until)
}

// allows reports whether the key may be read.
func (e *entry) allows(key []byte) bool {
	for _, prefix := range e.prefixes {
		if len(key) >= len(prefix) && string(key[:len(prefix)]) == prefix {
			return true
		}
	}
	return false
}

// rights is a bounded table of rights. Only rights that were given are kept, so
// nobody without one can push out others'.
type rights [rightSets][rightWays]atomic.Pointer[entry]

func (r *rights) set(d *digest) *[rightWays]atomic.Pointer[entry] {
	return &r[binary.LittleEndian.Uint64(d[:])%rightSets]
}

func (r *rights) get(d *digest) *entry {
	set := r.set(d)
	for i := range set {
		if e := set[i].Load(); e != nil && subtle.ConstantTimeCompare(e.digest[:], d[:]) == 1 {
			return e
		}
	}
	return nil
}

// put keeps e in the place of its predecessor, of none, or of the oldest.
func (r *rights) put(e *entry) {
	set := r.set(&e.digest)
	oldest, least := 0, time.Time{}
	for i := range set {
		old := set[i].Load()
		if old == nil || old.digest == e.digest {
			oldest = i
			break
		}
		if least.IsZero() || old.until.Before(least) {
			oldest, least = i, old.until
		}
	}
	set[oldest].Store(e)
}

// right returns the right of the request that was read last, or nil.
func (s *Server) right(ctx context.Context, h *head, now time.Time) *entry {
	epoch := s.auth.Epoch()
	if h.right != nil && h.right.valid(now, epoch) {
		return h.right
	}
	h.right = nil
	if !h.fields.authorized {
		return nil
	}
	token, ok := h.fields.token(h.block)
	if !ok {
		return nil
	}
	d := digestOf(token, h)
	e := s.rights.get(&d)
	if e == nil || !e.valid(now, epoch) {
		if e = s.ask(ctx, h, token, epoch, now); e == nil || !e.valid(now, epoch) {
			return nil
		}
		e.digest = d
		s.rights.put(e)
	}
	h.right = e
	return e
}

// ask asks the Authorizer. The epoch was read before, so that a right which ends
// meanwhile is not used.
func (s *Server) ask(ctx context.Context, h *head, token []byte, epoch uint64, now time.Time) *entry {
	right, err := s.auth.Read(ctx, string(token), string(h.account()), h.space)
	if err != nil {
		return nil // the handler finds out again, and answers
	}
	bytes := 0
	for _, prefix := range right.Prefixes {
		bytes += len(prefix) + 16
	}
	if len(right.Prefixes) == 0 || bytes > maxPrefixBytes {
		return nil
	}
	e := &entry{prefixes: right.Prefixes, until: now.Add(RightFor), epoch: epoch}
	if !right.Until.IsZero() && right.Until.Before(e.until) {
		e.until = right.Until
	}
	return e
}

// digestOf hashes a token with the place of the request that was read last.
func digestOf(token []byte, h *head) digest {
	var text [maxTokenBytes + idChars + 16]byte
	n := copy(text[:], token)
	n += copy(text[n:], h.account()) // of fixed length, as is the namespace
	n += copy(text[n:], h.space[:])
	return sha256.Sum256(text[:n])
}
