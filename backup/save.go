package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// SaveOptions say what a snapshot that is saved continues.
type SaveOptions struct {
	Whole   bool              // it is of all namespaces that there are
	Parents map[string]string // by the id of a namespace: the snapshot that was cut at Wanted.Since
	Origin  string            // the installation that is expected; empty: any

	// Progress is called now and then with what has been received. nil: nobody asks.
	Progress func(namespaces int, bytes int64)
}

// Save stores the stream of a Snapshotter and returns its manifest. If the stream
// is cut off, or something cannot be stored, there will be no manifest, and what
// was stored of it is removed if it can be.
func (a *Archive) Save(ctx context.Context, stream io.Reader, opts SaveOptions) (*Manifest, error) {
	frames, err := newFrameReader(stream, streamMagic)
	if err != nil {
		return nil, fmt.Errorf("receive the snapshot: %w", err)
	}
	s := &saver{archive: a, opts: opts, manifest: Manifest{Format: manifestFormat, Whole: opts.Whole}}
	if err := s.receive(ctx, frames); err != nil {
		// What a crash leaves here is no snapshot; Prune finds it.
		return nil, errors.Join(fmt.Errorf("receive the snapshot: %w", err), s.discard(ctx))
	}
	data, err := sealManifest(&s.manifest)
	if err == nil {
		err = a.put(ctx, manifestName(s.manifest.ID), data)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store the manifest: %w", err), s.discard(ctx))
	}
	return &s.manifest, nil
}

// put stores something in the bucket, again if the bucket is away for a moment.
func (a *Archive) put(ctx context.Context, name string, data []byte) error {
	return again(ctx, func() error { return a.bucket.Put(ctx, name, data) })
}

// get returns what is in the bucket in the same way.
func (a *Archive) get(ctx context.Context, name string) (data []byte, err error) {
	err = again(ctx, func() error { data, err = a.bucket.Get(ctx, name); return err })
	return data, err
}

// bucketPause is how long is waited before a bucket is asked again.
const bucketPause = time.Second

func again(ctx context.Context, do func() error) error {
	for tries := 1; ; tries++ {
		err := do()
		if err == nil || ctx.Err() != nil || tries == readTries || !passes(err) && !errors.Is(err, kv.ErrUnknown) {
			return err
		}
		if err := pause(ctx, bucketPause); err != nil {
			return err
		}
	}
}

// saver is a snapshot while it is stored.
type saver struct {
	archive  *Archive
	opts     SaveOptions
	manifest Manifest
	want     *Wanted // the namespace that is being received
	first    int     // the segment in which it begins
	records  bool    // it has any
	segment  []byte  // the one in making
	named    bool    // the segment in making says whose records follow
	received int64
}

func (s *saver) receive(ctx context.Context, frames *frameReader) error {
	for {
		f, err := frames.next()
		if err == io.EOF {
			return ErrCut
		}
		if err != nil {
			return err
		}
		s.received += int64(len(f))
		if (s.manifest.ID == "") != (f.kind() == frameBegin) && f.kind() != frameFailed {
			return fmt.Errorf("%w: a frame of kind %q out of place", ErrDamaged, f.kind())
		}
		done, err := s.frame(ctx, f)
		if done || err != nil {
			return err
		}
	}
}

// frame takes one frame; it reports whether it was the last.
func (s *saver) frame(ctx context.Context, f frame) (done bool, err error) {
	switch f.kind() {
	case frameBegin:
		return false, s.begin(ctx, f)
	case frameNamespace:
		s.want, s.named, s.records = new(Wanted), false, false
		return false, f.decode(s.want)
	case frameRecords:
		return false, s.add(ctx, f)
	case frameCut:
		return false, s.end(f)
	case frameGone:
		s.want = nil // records that were received stay in their segment, and nobody names them
		return false, nil
	case frameHeart:
		s.progress()
		return false, nil
	case frameEnd:
		return true, s.finish(ctx, f)
	case frameFailed:
		var fail failInfo
		if err := f.decode(&fail); err != nil {
			return false, err
		}
		return false, fail.error()
	}
	return false, fmt.Errorf("%w: a frame of unknown kind %q", ErrDamaged, f.kind())
}

func (s *saver) begin(ctx context.Context, f frame) error {
	var info beginInfo
	if err := f.decode(&info); err != nil {
		return err
	}
	if s.opts.Origin != "" && info.Origin != s.opts.Origin {
		return fmt.Errorf("%w: the snapshot is of another installation than the one that it continues; take a full one", ErrRefused)
	}
	ids, err := s.archive.IDs(ctx)
	if err != nil {
		return err
	}
	s.manifest.ID = newID(info.Started, rand.Uint32(), ids)
	s.manifest.Started, s.manifest.Origin, s.manifest.Version = info.Started, info.Origin, info.Version
	return nil
}

// add puts records into the segment in making.
func (s *saver) add(ctx context.Context, f frame) error {
	if s.want == nil {
		return fmt.Errorf("%w: records of no namespace", ErrDamaged)
	}
	name := jsonFrame(frameNamespace, Namespace{ID: s.want.ID})
	if len(s.segment)+len(name)+len(f) > s.archive.segment && len(s.segment) > 0 {
		if err := s.store(ctx); err != nil {
			return err
		}
	}
	if len(s.segment) == 0 {
		s.segment = append(s.segment, segmentMagic...)
	}
	if !s.records {
		s.records, s.first = true, len(s.manifest.Segments)
	}
	if !s.named {
		s.segment, s.named = append(s.segment, name...), true
	}
	s.segment = append(s.segment, f...)
	return nil
}

// store stores the segment in making.
func (s *saver) store(ctx context.Context) error {
	if len(s.segment) == 0 {
		return nil
	}
	n := len(s.manifest.Segments)
	if err := s.archive.put(ctx, segmentName(s.manifest.ID, n), s.segment); err != nil {
		return fmt.Errorf("store segment %d: %w", n, err)
	}
	s.manifest.Segments = append(s.manifest.Segments, Segment{int64(len(s.segment)), digest(s.segment)})
	s.manifest.Bytes += int64(len(s.segment))
	s.segment, s.named = nil, false // a bucket may keep what it was given
	s.progress()
	return nil
}

func (s *saver) progress() {
	if s.opts.Progress != nil {
		s.opts.Progress(len(s.manifest.Contents), s.received)
	}
}

// end notes a namespace that is complete.
func (s *saver) end(f frame) error {
	if s.want == nil {
		return fmt.Errorf("%w: the end of no namespace", ErrDamaged)
	}
	c := Content{Namespace: s.want.Namespace, Since: s.want.Since, First: s.first, Last: len(s.manifest.Segments)}
	if err := f.decode(&c.cutInfo); err != nil {
		return err
	}
	if !s.records {
		c.First, c.Last = 0, -1
	}
	if s.want.Since != "" {
		if c.Parent = s.opts.Parents[s.want.ID]; c.Parent == "" {
			return fmt.Errorf("%w: namespace %s continues a snapshot that was not asked for", ErrDamaged, s.want.ID)
		}
	}
	s.manifest.Contents = append(s.manifest.Contents, c)
	s.manifest.Records += c.Records
	s.want = nil
	return nil
}

func (s *saver) finish(ctx context.Context, f frame) error {
	var info endInfo
	if err := f.decode(&info); err != nil {
		return err
	}
	if info.Namespaces != len(s.manifest.Contents) || info.Records != s.manifest.Records {
		return fmt.Errorf("%w: %d records of %d namespaces were received, %d of %d were sent",
			ErrDamaged, s.manifest.Records, len(s.manifest.Contents), info.Records, info.Namespaces)
	}
	return s.store(ctx)
}

// discardTimeout is how long the removal of a snapshot that failed may take.
const discardTimeout = 30 * time.Second

// discard removes the segments of a snapshot that will have no manifest.
func (s *saver) discard(ctx context.Context) error {
	r, ok := s.archive.bucket.(remover)
	if !ok || s.manifest.ID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	if err := removeAll(ctx, r, segmentNames(&s.manifest)); err != nil {
		return fmt.Errorf("remove what was stored of it: %w", err)
	}
	return nil
}
