package proxy

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/nearkey/nearkey/kv"
)

// The bounds of a table.
const (
	// Slots is the number of parts into which a provider's keys fall by hash. A
	// slot is the least that can be moved.
	Slots = 4096
	// MaxSpreadBits bounds the buckets of a namespace: 2^8, of which each lives in
	// a slot of its own.
	MaxSpreadBits = 8
	// MaxSpread is the greatest number of namespaces with more than one bucket.
	MaxSpread = 4096
	// MaxClusters is the greatest number of clusters of a provider.
	MaxClusters = 1024
)

// slotOf returns the slot of a bucket of a namespace: the first 12 bits of the
// SHA-256 of the namespace's 16 bytes and the bucket's one. It must never change:
// it says where records are.
func slotOf(ns kv.NamespaceID, bucket int) int {
	var text [len(ns) + 1]byte
	copy(text[:], ns[:])
	text[len(ns)] = byte(bucket)
	sum := sha256.Sum256(text[:])
	return int(binary.BigEndian.Uint16(sum[:]) >> 4)
}

// slotCache remembers the slots of namespaces of one bucket: to hash them is most of
// what it costs to find a record's place.
type slotCache [slotsKnown]atomic.Pointer[knownSlot]

// slotsKnown is the number of namespaces that a slotCache remembers at most.
const slotsKnown = 1 << 10

type knownSlot struct {
	ns   kv.NamespaceID
	slot int
}

func (c *slotCache) of(ns kv.NamespaceID) int {
	at := &c[(binary.BigEndian.Uint64(ns[:])^binary.BigEndian.Uint64(ns[8:]))%slotsKnown]
	if k := at.Load(); k != nil && k.ns == ns {
		return k.slot
	}
	slot := slotOf(ns, 0)
	at.Store(&knownSlot{ns, slot})
	return slot
}

// bucketOf returns the bucket of a key in a namespace of 2^bits buckets: the
// first bits of the key's SHA-256. It must never change, either.
func bucketOf(key string, bits int) int {
	if bits == 0 {
		return 0
	}
	sum := sha256.Sum256([]byte(key))
	return int(sum[0]) >> (8 - bits)
}

// share is a cluster's claim to slots.
type share struct {
	name   string
	weight float64
}

// propose returns the cluster to which weighted rendezvous hashing gives a slot:
// each cluster draws a number for the slot, stretched by its weight, and the
// highest wins. A cluster that joins or leaves moves only the slots that it wins
// or had won. Without any weight it returns "".
func propose(shares []share, slot int) string {
	winner, highest := "", math.Inf(-1)
	for _, c := range shares {
		if c.weight <= 0 {
			continue
		}
		sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", c.name, slot))
		draw := (float64(binary.BigEndian.Uint64(sum[:])>>11) + 0.5) / (1 << 53) // within (0, 1)
		if score := -c.weight / math.Log(draw); score > highest {
			winner, highest = c.name, score
		}
	}
	return winner
}

// table says where records are: which cluster owns a slot, into how many buckets
// a namespace is spread, and what is on its way. A table is never changed; its
// successor has the next epoch.
type table struct {
	id     string // of the provider: a cluster serves one
	epoch  uint64
	last   uint64   // the id of the latest transfer
	owners []string // the cluster of each slot: reads go there
	spread map[kv.NamespaceID]int
	moves  []transfer
	text   []byte // as the Keeper has it
}

// transfer is the durable part of a move: of one slot, or of one namespace from
// one number of buckets to another.
type transfer struct {
	ID    uint64 `json:"id"`
	Phase Phase  `json:"phase"`

	Slot int    `json:"slot"` // -1: a namespace is spread
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`

	Namespace string `json:"namespace,omitempty"`
	FromBits  int    `json:"from_bits,omitempty"`
	ToBits    int    `json:"to_bits,omitempty"`

	ns kv.NamespaceID
}

// newTable returns the first table of a provider.
func newTable(owner func(slot int) string) *table {
	t := &table{id: rand.Text(), epoch: 1, owners: make([]string, Slots), spread: map[kv.NamespaceID]int{}}
	for slot := range t.owners {
		t.owners[slot] = owner(slot)
	}
	t.text = t.encode()
	return t
}

// next returns a copy to be changed, of the next epoch.
func (t *table) next() *table {
	n := *t
	n.epoch++
	n.owners, n.spread, n.moves = slices.Clone(t.owners), maps.Clone(t.spread), slices.Clone(t.moves)
	return &n
}

// transfer returns the transfer of that id, or nil.
func (t *table) transfer(id uint64) *transfer {
	for i := range t.moves {
		if t.moves[i].ID == id {
			return &t.moves[i]
		}
	}
	return nil
}

// add appends a transfer that waits for its turn.
func (t *table) add(tr transfer) {
	t.last++
	tr.ID, tr.Phase = t.last, Waiting
	t.moves = append(t.moves, tr)
}

// slotsOf returns the slots of the buckets of a namespace.
func slotsOf(ns kv.NamespaceID, bits int) []int {
	slots := make([]int, 1<<bits)
	for bucket := range slots {
		slots[bucket] = slotOf(ns, bucket)
	}
	return slots
}

// slots returns the slots that a transfer touches.
func (t *table) slots(tr transfer) []int {
	if tr.Slot >= 0 {
		return []int{tr.Slot}
	}
	from := tr.FromBits
	if tr.Phase == Waiting {
		from = t.spread[tr.ns]
	}
	return append(slotsOf(tr.ns, from), slotsOf(tr.ns, tr.ToBits)...)
}

// The text of a table: the SHA-256 of the rest in hexadecimal digits, and JSON.
const tableFormat = 1

type tableText struct {
	Format   int            `json:"format"`
	ID       string         `json:"id"`
	Epoch    uint64         `json:"epoch"`
	Last     uint64         `json:"last_move"`
	Clusters []string       `json:"clusters"`
	Slots    []int          `json:"slots"` // the place in Clusters of the owner of each slot
	Spread   map[string]int `json:"spread"`
	Moves    []transfer     `json:"moves"`
}

func (t *table) encode() []byte {
	text := tableText{Format: tableFormat, ID: t.id, Epoch: t.epoch, Last: t.last, Slots: make([]int, Slots), Spread: map[string]int{}, Moves: t.moves}
	places := map[string]int{}
	for slot, name := range t.owners {
		place, ok := places[name]
		if !ok {
			place = len(places)
			places[name] = place
			text.Clusters = append(text.Clusters, name)
		}
		text.Slots[slot] = place
	}
	for ns, bits := range t.spread {
		text.Spread[ns.String()] = bits
	}
	encoded, err := json.Marshal(text)
	if err != nil {
		panic(err) // numbers and strings
	}
	sum := sha256.Sum256(encoded)
	return append(append(hex.AppendEncode(nil, sum[:]), '\n'), encoded...)
}

var errTable = errors.New("the table of slots is damaged")

func decodeTable(encoded []byte) (*table, error) {
	head, body, _ := bytes.Cut(encoded, []byte{'\n'})
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != string(head) {
		return nil, fmt.Errorf("%w: its checksum does not fit", errTable)
	}
	var text tableText
	if err := json.Unmarshal(body, &text); err != nil {
		return nil, fmt.Errorf("%w: %w", errTable, err)
	}
	if text.Format != tableFormat {
		return nil, fmt.Errorf("the table of slots has format %d, this version of nearkey knows %d", text.Format, tableFormat)
	}
	if len(text.Slots) != Slots || text.ID == "" || text.Epoch == 0 {
		return nil, fmt.Errorf("%w: %d slots, id %q, epoch %d", errTable, len(text.Slots), text.ID, text.Epoch)
	}
	t := &table{id: text.ID, epoch: text.Epoch, last: text.Last, owners: make([]string, Slots), spread: map[kv.NamespaceID]int{}, moves: text.Moves, text: encoded}
	for slot, place := range text.Slots {
		if place < 0 || place >= len(text.Clusters) {
			return nil, fmt.Errorf("%w: slot %d is of cluster %d of %d", errTable, slot, place, len(text.Clusters))
		}
		t.owners[slot] = text.Clusters[place]
	}
	for name, bits := range text.Spread {
		ns, err := kv.ParseNamespaceID(name)
		if err != nil || bits < 1 || bits > MaxSpreadBits {
			return nil, fmt.Errorf("%w: namespace %q of 2^%d buckets", errTable, name, bits)
		}
		t.spread[ns] = bits
	}
	for i := range t.moves {
		if err := t.moves[i].check(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// check completes a transfer that was read.
func (tr *transfer) check() (err error) {
	known := slices.Contains([]Phase{Waiting, Clearing, Copying, CutOver, Dropping, Undoing}, tr.Phase)
	if !known || tr.Slot < -1 || tr.Slot >= Slots || min(tr.FromBits, tr.ToBits) < 0 || max(tr.FromBits, tr.ToBits) > MaxSpreadBits {
		return fmt.Errorf("%w: move %+v", errTable, *tr)
	}
	if tr.Slot >= 0 {
		return nil
	}
	if tr.ns, err = kv.ParseNamespaceID(tr.Namespace); err != nil {
		return fmt.Errorf("%w: %w", errTable, err)
	}
	return nil
}

// names returns every cluster that the table speaks of.
func (t *table) names() []string {
	names := slices.Clone(t.owners)
	for _, tr := range t.moves {
		if tr.Slot >= 0 && tr.Phase != Waiting {
			names = append(names, tr.From)
		}
		if tr.Slot >= 0 {
			names = append(names, tr.To)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TableNamespace is the namespace in which every cluster keeps a copy of the
// table. It is not served.
var TableNamespace = kv.NamespaceID(bytes.Repeat([]byte{0xfe}, 16))

var tableRef = kv.Ref{Namespace: TableNamespace, Key: "table"}

// record is the table as a cluster keeps it: a greater epoch is a newer version,
// and the metadata says whose table it is.
func (t *table) record() kv.Record {
	return kv.Record{Version: kv.NewVersion(int64(t.epoch), 0, 0), Metadata: fmt.Appendf(nil, "%q", t.id), Value: t.text}
}

// epochOf returns the epoch of a table's record.
func epochOf(rec kv.Record) uint64 { return uint64(rec.Version.UnixNano()) }

// Keeper keeps the table of a Shards. Its methods are not called at once.
type Keeper interface {
	// Load returns what was saved last, or nil if nothing ever was.
	Load() ([]byte, error)

	// Save replaces it, all or nothing, and returns when it is on stable storage.
	// After an error either may be there.
	Save(table []byte) error
}

// FileKeeper returns a Keeper that keeps the table in a file.
func FileKeeper(path string) Keeper { return fileKeeper{path} }

type fileKeeper struct{ path string }

func (k fileKeeper) Load() ([]byte, error) {
	text, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the table of slots: %w", err)
	}
	return text, nil
}

// Save writes a file beside and renames it. A crash before the rename leaves the
// old table, and a file that the next Save writes over.
func (k fileKeeper) Save(text []byte) error {
	temporary := k.path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save the table of slots: %w", err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("save the table of slots: %w", err)
	}
	if err := os.Rename(temporary, k.path); err != nil {
		return fmt.Errorf("save the table of slots: %w", err)
	}
	dir, err := os.Open(filepath.Dir(k.path))
	if err != nil {
		return fmt.Errorf("save the table of slots: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("save the table of slots: %w", err)
	}
	return nil
}
