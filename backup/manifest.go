package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
)

// SegmentBytes is the greatest size of a segment. It is less than what every
// bucket takes in one piece.
const SegmentBytes = 16 << 20

// maxManifestBytes is the greatest size of a manifest, for the same reason: some
// eighty thousand namespaces.
const maxManifestBytes = 24 << 20

// manifestFormat is the format that this program writes, and the newest that it
// understands.
const manifestFormat = 1

// Bucket is where a backup rests. Put is durable and whole, or an error; names are
// not written twice; Get of what is not there is an error that wraps
// fs.ErrNotExist; List is in byte order. All methods may be called at once. The
// caller does not change what it put.
type Bucket interface {
	Put(ctx context.Context, name string, data []byte) error
	Get(ctx context.Context, name string) ([]byte, error)
	List(ctx context.Context, prefix, after string, limit int) ([]blob.Info, bool, error)
}

// remover is what a bucket also has if snapshots may be taken away from it.
type remover interface {
	Delete(ctx context.Context, names []string) error
}

// Manifest says what a snapshot holds.
type Manifest struct {
	Format   int       `json:"format"`
	ID       string    `json:"id"`
	Started  time.Time `json:"started"` // by the clock of the server
	Origin   string    `json:"origin,omitempty"`
	Version  string    `json:"version,omitempty"` // of the server's program
	Whole    bool      `json:"whole"`             // all namespaces that there were
	Bytes    int64     `json:"bytes"`             // of all segments
	Records  int64     `json:"records"`
	Contents []Content `json:"namespaces"` // in the order in which they were taken
	Segments []Segment `json:"segments"`
}

// Content is one namespace in a snapshot.
type Content struct {
	Namespace
	cutInfo
	Since  string `json:"since,omitempty"`  // empty: it is a full snapshot
	Parent string `json:"parent,omitempty"` // the snapshot that was cut at Since
	First  int    `json:"first_segment"`    // where its records begin
	Last   int    `json:"last_segment"`     // where they end; less than First: it has none
}

// Segment is one segment of a snapshot.
type Segment struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Full reports whether nothing else is needed to know the namespace.
func (c *Content) Full() bool { return c.Since == "" }

// CutVersion is the cut; the zero Version if it cannot be read.
func (c *Content) CutVersion() kv.Version {
	v, err := kv.ParseVersion(c.Cut)
	if err != nil {
		return kv.Version{}
	}
	return v
}

// CutTime is the moment of which the snapshot is the state.
func (c *Content) CutTime() time.Time { return c.CutVersion().Time().UTC() }

// Content returns what the snapshot has of a namespace, nil if nothing.
func (m *Manifest) Content(id string) *Content {
	for i := range m.Contents {
		if m.Contents[i].ID == id {
			return &m.Contents[i]
		}
	}
	return nil
}

// Full reports whether the snapshot needs no other.
func (m *Manifest) Full() bool {
	for i := range m.Contents {
		if !m.Contents[i].Full() {
			return false
		}
	}
	return true
}

// Cut is the moment by which every namespace was cut.
func (m *Manifest) Cut() time.Time {
	last := m.Started
	for i := range m.Contents {
		if at := m.Contents[i].CutTime(); at.After(last) {
			last = at
		}
	}
	return last
}

// Damaged is how many records could not be read when the snapshot was taken.
func (m *Manifest) Damaged() (n int64) {
	for i := range m.Contents {
		n += m.Contents[i].Damaged
	}
	return n
}

const (
	manifestPrefix = "manifests/"
	segmentPrefix  = "segments/"
)

func manifestName(id string) string { return manifestPrefix + id }

func segmentName(id string, n int) string { return fmt.Sprintf("%s%s/%06d", segmentPrefix, id, n) }

// idPattern is what ids look like: the time, then what tells snapshots of the same
// moment apart.
var idPattern = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[0-9a-f]{8}$`)

const idTime = "20060102T150405.000Z"

// newID makes an id that is greater than all there are, whatever the clock says.
func newID(at time.Time, random uint32, ids []string) string {
	if len(ids) > 0 {
		text, _, _ := strings.Cut(ids[len(ids)-1], "-")
		if last, err := time.Parse(idTime, text); err == nil && !at.Truncate(time.Millisecond).After(last) {
			at = last.Add(time.Millisecond)
		}
	}
	return fmt.Sprintf("%s-%08x", at.UTC().Format(idTime), random)
}

// sealed is a manifest as it rests: with the digest of its own text.
type sealed struct {
	Manifest json.RawMessage `json:"manifest"`
	SHA256   string          `json:"sha256"`
}

func sealManifest(m *Manifest) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write the manifest: %w", err)
	}
	out, err := json.Marshal(sealed{text, digest(text)})
	if err == nil && len(out) > maxManifestBytes {
		err = fmt.Errorf("write the manifest: it has %d bytes, at most %d are possible; back up fewer namespaces at once", len(out), maxManifestBytes)
	}
	return out, err
}

func openManifest(id string, data []byte) (*Manifest, error) {
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%w: manifest %s: %w", ErrDamaged, id, err)
	}
	if digest(s.Manifest) != s.SHA256 {
		return nil, fmt.Errorf("%w: manifest %s: its checksum differs", ErrDamaged, id)
	}
	var m Manifest
	if err := json.Unmarshal(s.Manifest, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest %s: %w", ErrDamaged, id, err)
	}
	if m.Format < 1 || m.Format > manifestFormat {
		return nil, fmt.Errorf("snapshot %s has format %d, this nearkey understands %d: use the nearkey that wrote it, or a newer one", id, m.Format, manifestFormat)
	}
	if m.ID != id {
		return nil, fmt.Errorf("%w: manifest %s says that it is %s", ErrDamaged, id, m.ID)
	}
	for i := range m.Contents {
		c := &m.Contents[i]
		if c.CutVersion() == (kv.Version{}) || c.First < 0 || c.Last >= len(m.Segments) {
			return nil, fmt.Errorf("%w: manifest %s: what it says of namespace %s makes no sense", ErrDamaged, id, c.ID)
		}
	}
	return &m, nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Archive is the snapshots in a bucket.
type Archive struct {
	bucket  Bucket
	segment int // SegmentBytes, or less in tests
}

// NewArchive returns the archive in a bucket.
func NewArchive(b Bucket) *Archive { return &Archive{b, SegmentBytes} }

// IDs returns the ids of all snapshots, the oldest first.
func (a *Archive) IDs(ctx context.Context) ([]string, error) {
	var ids []string
	for after, more := "", true; more; {
		var infos []blob.Info
		var err error
		if infos, more, err = a.bucket.List(ctx, manifestPrefix, after, blob.MaxList); err != nil {
			return nil, fmt.Errorf("list the snapshots: %w", err)
		}
		for _, info := range infos {
			after = info.Name
			if id := strings.TrimPrefix(info.Name, manifestPrefix); idPattern.MatchString(id) {
				ids = append(ids, id)
			}
		}
		more = more && len(infos) > 0
	}
	return ids, nil
}

// Manifest reads what a snapshot holds.
func (a *Archive) Manifest(ctx context.Context, id string) (*Manifest, error) {
	if !idPattern.MatchString(id) {
		return nil, fmt.Errorf("%q is no id of a snapshot", id)
	}
	data, err := a.get(ctx, manifestName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: snapshot %s is not there", ErrMissing, id)
	}
	if err != nil {
		return nil, fmt.Errorf("read the manifest of snapshot %s: %w", id, err)
	}
	return openManifest(id, data)
}

// readSegment reads and checks a segment.
func (a *Archive) readSegment(ctx context.Context, m *Manifest, n int) ([]byte, error) {
	name := segmentName(m.ID, n)
	data, err := a.get(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is not there", ErrMissing, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if want := m.Segments[n]; int64(len(data)) != want.Bytes || digest(data) != want.SHA256 {
		return nil, fmt.Errorf("%w: %s is not what was written: it has %d bytes, and had %d", ErrDamaged, name, len(data), want.Bytes)
	}
	return data, nil
}
