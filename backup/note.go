package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// A restore puts records with versions of long ago, which an incremental snapshot
// would take for known. So the store has a note of each namespace that something
// was restored into: a record of a namespace of their own, whose key is the id and
// whose version says when.
const (
	notesByte  = 0xfc
	noteOpen   = "open"   // the restore is under way, or was cut off
	noteClosed = "closed" // it has ended
)

// noteRef is where the note of a namespace is.
func noteRef(ns kv.NamespaceID) kv.Ref {
	var notes kv.NamespaceID
	for i := range notes {
		notes[i] = notesByte
	}
	return kv.Ref{Namespace: notes, Key: ns.String()}
}

// note notes that a restore begins or has ended.
func (r *Restorer) note(ctx context.Context, ns kv.NamespaceID, state string) error {
	v, err := r.Stamp.Stamp()
	if err != nil {
		return err
	}
	ref := noteRef(ns)
	b := batch{store: r.Barrier, ns: ref.Namespace, writes: []kv.Write{{Ref: ref, Record: kv.Record{Version: v, Value: []byte(state)}}}}
	if err := b.flush(ctx); err != nil {
		return fmt.Errorf("note that the namespace is restored: %w", err)
	}
	return nil
}

// restored is until when records of earlier versions were put into a namespace;
// zero: never. One that was cut off may have gone on for stagingAge.
func (s *Snapshotter) restored(ctx context.Context, ns kv.NamespaceID) (at time.Time, err error) {
	ref := noteRef(ns)
	r := reader{store: s.Barrier.far}
	var lost error
	err = r.read(ctx, ref.Namespace, []string{ref.Key}, func(_ string, rec kv.Record) error {
		if !rec.Absent() && !rec.Tombstone {
			at = rec.Version.Time()
		}
		if string(rec.Value) == noteOpen {
			at = at.Add(stagingAge)
		}
		return nil
	}, func(_ string, damage error) { lost = damage })
	if err = errors.Join(err, lost); err != nil {
		return at, fmt.Errorf("read whether the namespace was restored: %w", err)
	}
	return at, nil
}
