package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
)

// OrphanAge is how old segments without a manifest must be to be removed: younger
// ones may be of a snapshot that is being stored.
const OrphanAge = 24 * time.Hour

// Pruned is what Prune removed, or would.
type Pruned struct {
	Snapshots []string // ids
	Orphans   []string // names of segments that no manifest names
	Bytes     int64
}

// Prune removes the snapshots that no moment since then is restored from, and
// segments that were left by snapshots that failed. With dry nothing is removed.
func (a *Archive) Prune(ctx context.Context, since time.Time, now time.Time, dry bool) (Pruned, error) {
	var pruned Pruned
	bucket, ok := a.bucket.(remover)
	if !ok {
		return pruned, errors.New("nothing can be removed from where the backup is")
	}
	ids, err := a.IDs(ctx)
	if err != nil {
		return pruned, err
	}
	needed, err := a.needed(ctx, ids, since)
	if err != nil {
		return pruned, err
	}
	for _, id := range slices.Backward(ids) { // a snapshot goes before those that it continues
		if needed[id] {
			continue
		}
		m, err := a.Manifest(ctx, id)
		if err != nil {
			return pruned, err
		}
		if !dry {
			// After a crash its segments have no manifest.
			if err := bucket.Delete(ctx, []string{manifestName(id)}); err != nil {
				return pruned, fmt.Errorf("remove snapshot %s: %w", id, err)
			}
			if err := removeAll(ctx, bucket, segmentNames(m)); err != nil {
				return pruned, fmt.Errorf("remove snapshot %s: %w", id, err)
			}
		}
		pruned.Snapshots, pruned.Bytes = append(pruned.Snapshots, id), pruned.Bytes+m.Bytes
	}
	orphans, err := a.orphans(ctx, ids, now.Add(-OrphanAge))
	if err != nil {
		return pruned, err
	}
	var names []string
	for _, o := range orphans {
		names, pruned.Bytes = append(names, o.Name), pruned.Bytes+o.Size
	}
	pruned.Orphans = names
	if !dry {
		err = removeAll(ctx, bucket, names)
	}
	return pruned, err
}

func segmentNames(m *Manifest) []string {
	names := make([]string, len(m.Segments))
	for i := range names {
		names[i] = segmentName(m.ID, i)
	}
	return names
}

func removeAll(ctx context.Context, bucket remover, names []string) error {
	for chunk := range slices.Chunk(names, blob.MaxList) {
		if err := bucket.Delete(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

// needed are the snapshots that moments since then are restored from: those that
// were cut since, of each namespace the one before, and all that these continue.
func (a *Archive) needed(ctx context.Context, ids []string, since time.Time) (map[string]bool, error) {
	needed, covered, whole := map[string]bool{}, map[string]bool{}, false
	for _, id := range slices.Backward(ids) {
		m, err := a.Manifest(ctx, id)
		if err != nil {
			return nil, err
		}
		after := m.Cut().After(since)
		for i := range m.Contents {
			c := &m.Contents[i]
			if !after && !whole && !covered[c.ID] {
				needed[id], covered[c.ID] = true, true
			}
		}
		needed[id] = needed[id] || after
		whole = whole || m.Whole && !after
		if !needed[id] {
			continue
		}
		for i := range m.Contents {
			if parent := m.Contents[i].Parent; parent != "" {
				needed[parent] = true
			}
		}
	}
	return needed, nil
}

// orphans are the segments of no snapshot that were stored before a time.
func (a *Archive) orphans(ctx context.Context, ids []string, before time.Time) (found []blob.Info, err error) {
	for after, more := "", true; more; {
		var infos []blob.Info
		if infos, more, err = a.bucket.List(ctx, segmentPrefix, after, blob.MaxList); err != nil {
			return nil, fmt.Errorf("look for segments of no snapshot: %w", err)
		}
		for _, info := range infos {
			after = info.Name
			id, _, _ := strings.Cut(strings.TrimPrefix(info.Name, segmentPrefix), "/")
			_, known := slices.BinarySearch(ids, id)
			if !known && idPattern.MatchString(id) && info.Modified.Before(before) {
				found = append(found, info)
			}
		}
		more = more && len(infos) > 0
	}
	return found, nil
}
