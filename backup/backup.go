// Package backup takes snapshots of namespaces while they are written, keeps them
// in a directory or an object store, and puts them back.
//
// A snapshot of a namespace is the state that it had at one moment, its cut: every
// write that was acknowledged before the cut is in it and none that began after
// it. To get there without stopping the writers the store is read in the order of
// its keys while a Barrier, which all writes pass, notes what is written meanwhile.
// That is read again, in rounds that become smaller, and for the last, small one
// the writes of this one namespace are held back for a moment (MaxPause).
//
// An incremental snapshot has the records, tombstones included, that are newer
// than the cut of an earlier one, less a margin for writes that arrived late. The
// snapshots from a full one on are a chain; of the copies of a key in it the newest
// counts, by the law of package kv.
//
// # What is stored
//
//	manifests/<id>           what a snapshot holds; written last, so that a
//	                         snapshot that has one is whole
//	segments/<id>/<number>   records, at most SegmentBytes each
//
// An id begins with the time, so that ids in byte order are in order of time. A
// segment is a sequence of frames, each with its checksum as it left the server;
// the manifest has the SHA-256 of each segment.
//
// # What putting back does
//
// Records are put back with their own versions: what is newer stays. A rewind
// instead makes a namespace equal to what it was, by new writes. Either is first
// composed in a namespace of its own unless the target is empty, so that nobody
// sees a state that is older than what is meant, and so that records of any number
// are compared in order, within bounded memory.
//
// The package keeps nothing of its own while it works; a snapshot that was cut off
// is lost, and the store and the earlier snapshots are as they were.
package backup

import (
	"errors"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Namespace is what a snapshot tells of a namespace beside its records.
type Namespace struct {
	ID           string    `json:"id"`
	Title        string    `json:"title,omitempty"`
	Account      string    `json:"account,omitempty"`
	Jurisdiction string    `json:"jurisdiction,omitempty"`
	Ack          string    `json:"ack,omitempty"`
	Created      time.Time `json:"created,omitzero"`
}

// DefaultMargin is how much older than the last cut the records are that an
// incremental snapshot takes once more. It must be longer than a write can be
// under way, and than a provider may be away without its records being seen.
const DefaultMargin = time.Hour

// The errors by which callers decide.
var (
	// ErrTooOld: deletions since the last snapshot may have been forgotten.
	ErrTooOld = errors.New("the last snapshot is older than deletions are remembered")
	// ErrBusy: writes came faster than they could be read.
	ErrBusy = errors.New("the namespace is written faster than it can be read")
	// ErrCut: a stream ended before its end.
	ErrCut = errors.New("the stream was cut off")
	// ErrDamaged: what is stored is not what was written.
	ErrDamaged = errors.New("the backup is damaged")
	// ErrMissing: a part of a backup is not there.
	ErrMissing = errors.New("a part of the backup is missing")
	// ErrRefused: it would do harm; the text says what and how to go on.
	ErrRefused = errors.New("refused")
)

// stagingMark begins the ids of namespaces in which something is composed.
const stagingMark = "\xfb\xfb\xfb\xfb"

// firstReserved is the least of the bytes of which ids consist that are nearkey's own.
const firstReserved = notesByte

// Reserved reports whether a namespace is one of nearkey's own, which is not
// backed up: what is in it follows from something else.
func Reserved(id kv.NamespaceID) bool {
	if string(id[:len(stagingMark)]) == stagingMark || id == (kv.NamespaceID{}) {
		return true
	}
	for _, b := range id {
		if b < firstReserved {
			return false
		}
	}
	return true
}

// namespaceID reads the id of a namespace that may be backed up.
func namespaceID(text string) (kv.NamespaceID, error) {
	id, err := kv.ParseNamespaceID(text)
	if err != nil {
		return id, err
	}
	if Reserved(id) {
		return id, fmt.Errorf("%w: namespace %s is one of nearkey's own", ErrRefused, id)
	}
	return id, nil
}
