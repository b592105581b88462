package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// PlanOptions say what is to be put back.
type PlanOptions struct {
	Moment     time.Time // the state that was cut last before it, or at it; zero: the newest
	Namespaces []string  // ids or titles; nil: all that there were
	// WithLater also takes what the next snapshot has of writes up to the moment.
	// That is nearer to it, but no longer the state of one moment.
	WithLater bool
}

// Restoration is how one namespace is put back.
type Restoration struct {
	Content *Content // of the newest snapshot of which everything is taken
	Links   []Link   // the oldest first
	Next    time.Time
}

// Link is one snapshot of a chain.
type Link struct {
	Manifest *Manifest
	Content  *Content
	UpTo     time.Time // only writes up to it are taken; zero: all
}

// Bytes is about how much is read to put the namespace back.
func (r *Restoration) Bytes() (n int64) {
	for _, l := range r.Links {
		n += l.Content.Bytes
	}
	return n
}

// Records is how many records are read.
func (r *Restoration) Records() (n int64) {
	for _, l := range r.Links {
		n += l.Content.Records
	}
	return n
}

// planner finds the snapshots of which a state is composed.
type planner struct {
	archive *Archive
	loaded  map[string]*Manifest
	opts    PlanOptions
	found   map[string]*Restoration // by the id of the namespace
	later   map[string]Link         // the first one after the moment
	names   map[string]string       // names that were asked for, to the ids that they mean
	order   []string
}

// Plan finds what is needed to put namespaces back.
func (a *Archive) Plan(ctx context.Context, opts PlanOptions) ([]Restoration, error) {
	p := &planner{archive: a, opts: opts, loaded: map[string]*Manifest{}, found: map[string]*Restoration{}, later: map[string]Link{}, names: map[string]string{}}
	ids, err := a.IDs(ctx)
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: there is no snapshot", ErrMissing)
	}
	for _, id := range slices.Backward(ids) {
		m, err := p.load(ctx, id)
		if err != nil {
			return nil, err
		}
		enough, err := p.look(m)
		if err != nil {
			return nil, err
		}
		if enough {
			break
		}
		p.forget(m)
	}
	if err := p.complete(ids); err != nil {
		return nil, err
	}
	plan := make([]Restoration, 0, len(p.order))
	for _, id := range p.order {
		r := p.found[id]
		if err := p.chain(ctx, r); err != nil {
			return nil, err
		}
		plan = append(plan, *r)
	}
	return plan, nil
}

func (p *planner) load(ctx context.Context, id string) (*Manifest, error) {
	if m := p.loaded[id]; m != nil {
		return m, nil
	}
	m, err := p.archive.Manifest(ctx, id)
	if err == nil {
		p.loaded[id] = m
	}
	return m, err
}

// forget lets a manifest go that nothing was taken from.
func (p *planner) forget(m *Manifest) {
	for _, r := range p.found {
		if r.Links[0].Manifest == m {
			return
		}
	}
	delete(p.loaded, m.ID)
}

// look takes from a snapshot what is not known of newer ones. It reports whether
// older ones need not be looked at.
func (p *planner) look(m *Manifest) (enough bool, err error) {
	for i := range m.Contents {
		c := &m.Contents[i]
		name, wanted, err := p.wanted(m, c)
		if err != nil {
			return false, err
		}
		if !wanted || p.found[c.ID] != nil {
			continue
		}
		if !p.opts.Moment.IsZero() && c.CutTime().After(p.opts.Moment) {
			p.later[c.ID] = Link{Manifest: m, Content: c, UpTo: p.opts.Moment}
			continue
		}
		p.found[c.ID] = &Restoration{Content: c, Links: []Link{{Manifest: m, Content: c}}}
		p.order = append(p.order, c.ID)
		p.names[name] = c.ID
	}
	if p.opts.Namespaces != nil {
		return len(p.found) == len(p.opts.Namespaces), nil
	}
	// What is not in a snapshot of everything did not exist when it was begun.
	return m.Whole && (p.opts.Moment.IsZero() || !m.Cut().After(p.opts.Moment)), nil
}

// wanted reports whether a namespace was asked for, and by which name.
func (p *planner) wanted(m *Manifest, c *Content) (name string, ok bool, err error) {
	if p.opts.Namespaces == nil {
		return "", true, nil
	}
	for _, name := range p.opts.Namespaces {
		if !strings.EqualFold(name, c.ID) && name != c.Title {
			continue
		}
		if id := p.names[name]; id != "" && id != c.ID {
			if p.found[id].Links[0].Manifest == m {
				return "", false, fmt.Errorf("%w: two namespaces have the title %q: name one by its id, %s or %s", ErrRefused, name, id, c.ID)
			}
			return "", false, nil // an older one, that had the title before
		}
		return name, true, nil
	}
	return "", false, nil
}

// complete says what was asked for and not found.
func (p *planner) complete(ids []string) error {
	if len(p.found) == 0 && p.opts.Namespaces == nil {
		return fmt.Errorf("%w: no snapshot was cut by %s; the first one begins at %s", ErrMissing, p.opts.Moment.UTC().Format(time.RFC3339), ids[0])
	}
	for _, name := range p.opts.Namespaces {
		if p.names[name] == "" {
			return fmt.Errorf("%w: no snapshot%s has a namespace %q", ErrMissing, p.byThen(), name)
		}
	}
	return nil
}

func (p *planner) byThen() string {
	if p.opts.Moment.IsZero() {
		return ""
	}
	return " cut by " + p.opts.Moment.UTC().Format(time.RFC3339)
}

// chain adds the snapshots that the found one continues.
func (p *planner) chain(ctx context.Context, r *Restoration) error {
	for first := r.Links[0]; !first.Content.Full(); first = r.Links[0] {
		m, err := p.load(ctx, first.Content.Parent)
		if err != nil {
			return fmt.Errorf("snapshot %s continues another one: %w", first.Manifest.ID, err)
		}
		c := m.Content(first.Content.ID)
		if c == nil || c.Cut != first.Content.Since || m.ID >= first.Manifest.ID {
			return fmt.Errorf("%w: snapshot %s does not continue %s for namespace %s", ErrDamaged, first.Manifest.ID, m.ID, first.Content.ID)
		}
		r.Links = append([]Link{{Manifest: m, Content: c}}, r.Links...)
	}
	if later, ok := p.later[r.Content.ID]; ok {
		r.Next = later.Content.CutTime()
		if p.opts.WithLater {
			r.Links = append(r.Links, later)
		}
	}
	return nil
}

// Parents returns the newest snapshot of each namespace and what is wanted of it
// to continue that: full snapshots of those that have none.
func (a *Archive) Parents(ctx context.Context, namespaces []Namespace) (wanted []Wanted, parents map[string]string, origin string, err error) {
	ids, err := a.IDs(ctx)
	if err != nil {
		return nil, nil, "", err
	}
	since, parents := map[string]string{}, map[string]string{}
	for _, id := range slices.Backward(ids) {
		m, err := a.Manifest(ctx, id)
		if err != nil {
			return nil, nil, "", err
		}
		if origin == "" {
			origin = m.Origin
		}
		for i := range m.Contents {
			if c := &m.Contents[i]; since[c.ID] == "" {
				since[c.ID], parents[c.ID] = c.Cut, m.ID
			}
		}
		if m.Whole || holdsAll(since, namespaces) {
			break
		}
	}
	for _, n := range namespaces {
		wanted = append(wanted, Wanted{Namespace: n, Since: since[n.ID]})
	}
	return wanted, parents, origin, nil
}

func holdsAll(since map[string]string, namespaces []Namespace) bool {
	for _, n := range namespaces {
		if since[n.ID] == "" {
			return false
		}
	}
	return true
}

// segments reads segments one after the other and keeps the last one, in which
// the next namespace often begins.
type segments struct {
	archive  *Archive
	manifest *Manifest
	n        int
	data     []byte
	failed   map[int]error // nil: errors are not kept
}

func (s *segments) get(ctx context.Context, n int) ([]byte, error) {
	if s.data != nil && s.n == n {
		return s.data, nil
	}
	if err := s.failed[n]; err != nil {
		return nil, err
	}
	data, err := s.archive.readSegment(ctx, s.manifest, n)
	if err != nil {
		if s.failed != nil {
			s.failed[n] = err
		}
		return nil, err
	}
	s.n, s.data = n, data
	return data, nil
}

// frames calls each with the frames of records of a namespace in one segment.
func (s *segments) frames(ctx context.Context, n int, id string, each func(frame) error) error {
	data, err := s.get(ctx, n)
	if err != nil {
		return err
	}
	frames, err := newFrameReader(bytes.NewReader(data), segmentMagic)
	if err != nil {
		return fmt.Errorf("read %s: %w", segmentName(s.manifest.ID, n), err)
	}
	ours := false
	for {
		f, err := frames.next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			switch {
			case f.kind() == frameNamespace:
				var ns Namespace
				err = f.decode(&ns)
				ours = ns.ID == id
			case f.kind() == frameRecords && ours:
				if err := each(f); err != nil {
					return err
				}
			}
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", segmentName(s.manifest.ID, n), err)
		}
	}
}

// Target says where and how records are put back.
type Target struct {
	Namespace        // where; a title that is not empty: it is made if it does not exist
	Cut       string `json:"cut"`                  // the state that is put back
	Rewind    bool   `json:"rewind,omitempty"`     // make the namespace equal to the state, by new writes
	BringBack bool   `json:"bring_back,omitempty"` // also what may have been deleted so long ago that nobody remembers
}

// linkInfo begins the records of one snapshot.
type linkInfo struct {
	Snapshot string    `json:"snapshot"`
	UpTo     time.Time `json:"up_to,omitzero"`
}

// Send writes what puts one namespace back as a stream, for a Restorer.
func (a *Archive) Send(ctx context.Context, w io.Writer, r Restoration, target Target, progress func(bytes int64)) error {
	target.Cut = r.Content.Cut
	if _, err := w.Write([]byte(streamMagic)); err != nil {
		return err
	}
	if _, err := w.Write(jsonFrame(frameTarget, target)); err != nil {
		return err
	}
	for _, link := range r.Links {
		if _, err := w.Write(jsonFrame(frameLink, linkInfo{link.Manifest.ID, link.UpTo})); err != nil {
			return err
		}
		s := &segments{archive: a, manifest: link.Manifest}
		for n := link.Content.First; n <= link.Content.Last; n++ {
			err := s.frames(ctx, n, link.Content.ID, func(f frame) error {
				if progress != nil {
					progress(int64(len(f)))
				}
				_, err := w.Write(f)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	_, err := w.Write(jsonFrame(frameEnd, endInfo{Namespaces: 1, Records: r.Records()}))
	return err
}

// Verify reads a snapshot in full and returns everything that is wrong with it,
// each named; nil if nothing is. The snapshots that it continues are looked for,
// but not read.
func (a *Archive) Verify(ctx context.Context, id string, progress func(bytes int64)) (*Manifest, []error) {
	m, err := a.Manifest(ctx, id)
	if err != nil {
		return nil, []error{err}
	}
	v := &segments{archive: a, manifest: m, failed: map[int]error{}}
	var wrong []error
	for i := range m.Contents {
		c := &m.Contents[i]
		if err := a.verifyContent(ctx, v, c); err != nil {
			wrong = append(wrong, fmt.Errorf("snapshot %s, namespace %s: %w", id, c.ID, err))
		}
		if err := a.verifyParent(ctx, m, c); err != nil {
			wrong = append(wrong, fmt.Errorf("snapshot %s, namespace %s: %w", id, c.ID, err))
		}
		if err := ctx.Err(); err != nil {
			return m, append(wrong, err)
		}
		if progress != nil {
			progress(c.Bytes)
		}
	}
	return m, wrong
}

func (a *Archive) verifyContent(ctx context.Context, s *segments, c *Content) error {
	var errs []error
	parts, feed := io.Pipe()
	checked := make(chan error, 1)
	go func() {
		err := countRecords(parts, c)
		_ = parts.CloseWithError(err) // nil lets the feeder go on to its end
		checked <- err
	}()
	for n := c.First; n <= c.Last; n++ {
		err := s.frames(ctx, n, c.ID, func(f frame) error {
			_, err := feed.Write(f.payload())
			return err
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	_ = feed.CloseWithError(errors.Join(errs...)) // the records are then not whole
	if err := <-checked; err != nil && len(errs) == 0 {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// countRecords checks that the records are those that the manifest tells of.
func countRecords(r io.Reader, c *Content) error {
	records, cut := newRecordReader(r), c.CutVersion()
	var count, tombstones int64
	for {
		key, rec, err := records.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if rec.Version.Compare(cut) > 0 {
			return fmt.Errorf("%w: the record of key %q is newer than the cut", ErrDamaged, key)
		}
		count++
		if rec.Tombstone {
			tombstones++
		}
	}
	if count != c.Records || tombstones != c.Tombstones {
		return fmt.Errorf("%w: it has %d records, %d of them tombstones, and had %d and %d", ErrDamaged, count, tombstones, c.Records, c.Tombstones)
	}
	return nil
}

func (a *Archive) verifyParent(ctx context.Context, m *Manifest, c *Content) error {
	if c.Full() {
		return nil
	}
	parent, err := a.Manifest(ctx, c.Parent)
	if err != nil {
		return fmt.Errorf("it continues another snapshot: %w", err)
	}
	if p := parent.Content(c.ID); p == nil || p.Cut != c.Since {
		return fmt.Errorf("%w: it does not continue snapshot %s", ErrDamaged, c.Parent)
	}
	return nil
}
