package disk

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/nearkey/nearkey/kv"
)

// LargeValueBytes is the size from which on a value is a file of its own, so
// that listings and compactions do not carry it.
const LargeValueBytes = kv.ReserveBytes

// values keeps large values as immutable files. A file is
//
//	"nkv1" <key length 2> <key> <value>
//
// and its name is <version hex>-<random hex>. The namespace is in the path, the
// key in the file, so that the row of a file can be found (Store.sweepFiles).
type values struct {
	fs  vfs.FS
	dir string

	mu      sync.Mutex          // guards the rest
	pending map[string]struct{} // names of files that a write under way will commit, or remove
	made    map[string]struct{} // directories known to be on stable storage
}

const fileMagic = "nkv1"

// fileRef is what a row says of its value's file.
type fileRef struct {
	version  kv.Version // with nonce, the name; it is that of the row, unless the file was linked
	nonce    uint64
	bytes    int64
	checksum uint32 // CRC-32C of the value
}

const fileRefBytes = versionBytes + 8 + 8 + 4

func (f fileRef) append(b []byte) []byte {
	b = append(b, f.version[:]...)
	b = binary.BigEndian.AppendUint64(b, f.nonce)
	b = binary.BigEndian.AppendUint64(b, uint64(f.bytes))
	return binary.BigEndian.AppendUint32(b, f.checksum)
}

func parseFileRef(data []byte) (fileRef, error) {
	if len(data) != fileRefBytes {
		return fileRef{}, fmt.Errorf("reference to a value's file of %d bytes: %w", len(data), errCorrupt)
	}
	f := fileRef{version: kv.Version(data[:versionBytes]), nonce: binary.BigEndian.Uint64(data[versionBytes:]),
		bytes: int64(binary.BigEndian.Uint64(data[versionBytes+8:])), checksum: binary.BigEndian.Uint32(data[versionBytes+16:])}
	if f.bytes < 0 || f.bytes > kv.MaxValueBytes || f.nonce == 0 {
		return fileRef{}, fmt.Errorf("reference to a value of %d bytes: %w", f.bytes, errCorrupt)
	}
	return f, nil
}

func (f fileRef) name() string {
	return f.version.String() + "-" + hex.EncodeToString(binary.BigEndian.AppendUint64(nil, f.nonce))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openValues(fsys vfs.FS, dir string) (*values, error) {
	v := &values{fs: fsys, dir: dir, pending: map[string]struct{}{}, made: map[string]struct{}{}}
	return v, makeDir(fsys, dir)
}

// dirs are the directories of a file below v.dir, outermost first. The last two
// digits of the nonce spread the files of a namespace over 256 directories.
func (v *values) dirs(ns kv.NamespaceID, name string) (namespace, spread string) {
	namespace = v.fs.PathJoin(v.dir, ns.String())
	return namespace, v.fs.PathJoin(namespace, name[len(name)-2:])
}

func (v *values) path(ns kv.NamespaceID, f fileRef) string {
	name := f.name()
	_, dir := v.dirs(ns, name)
	return v.fs.PathJoin(dir, name)
}

// write stores a value durably and returns its reference. The file is pending
// until the caller calls settle: no sweep removes it.
func (v *values) write(ref kv.Ref, version kv.Version, value []byte) (fileRef, error) {
	f := fileRef{version: version, nonce: rand.Uint64() | 1, bytes: int64(len(value)), checksum: crc32.Checksum(value, castagnoli)}
	name := f.name()
	namespace, dir := v.dirs(ref.Namespace, name)
	v.mu.Lock()
	v.pending[name] = struct{}{}
	v.mu.Unlock()
	err := v.mkdir(namespace)
	if err == nil {
		err = v.mkdir(dir)
	}
	if err == nil {
		header := binary.BigEndian.AppendUint16([]byte(fileMagic), uint16(len(ref.Key)))
		err = writeFile(v.fs, dir, name, [][]byte{header, []byte(ref.Key), value})
	}
	if err != nil {
		v.settle(f)
		return fileRef{}, fmt.Errorf("write a value of %d bytes: %w", len(value), err)
	}
	return f, nil
}

// settle says that the write of a file has ended: a row names it, or none does.
func (v *values) settle(f fileRef) {
	v.mu.Lock()
	delete(v.pending, f.name())
	v.mu.Unlock()
}

// mkdir makes a directory and sees to it that it stays.
func (v *values) mkdir(dir string) error {
	v.mu.Lock()
	_, ok := v.made[dir]
	v.mu.Unlock()
	if ok {
		return nil
	}
	if err := makeDir(v.fs, dir); err != nil {
		return err
	}
	v.mu.Lock()
	v.made[dir] = struct{}{}
	v.mu.Unlock()
	return nil
}

// read returns the value of a file; the error wraps fs.ErrNotExist if it has
// been replaced and removed meanwhile.
func (v *values) read(ref kv.Ref, f fileRef) ([]byte, error) {
	path := v.path(ref.Namespace, f)
	file, err := v.fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	value := make([]byte, f.bytes)
	skip := int64(len(fileMagic) + 2 + len(ref.Key))
	if _, err := file.ReadAt(value, skip); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if crc32.Checksum(value, castagnoli) != f.checksum {
		return nil, fmt.Errorf("read %s: %w: the checksum differs", path, errCorrupt)
	}
	return value, nil
}

// remove removes a file that no durable row names. What it cannot remove the
// next sweep will.
func (v *values) remove(ns kv.NamespaceID, f fileRef) error {
	if err := v.fs.Remove(v.path(ns, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a value that was replaced: %w", err)
	}
	return nil
}

// drop removes all files of a namespace.
func (v *values) drop(ns kv.NamespaceID) error {
	dir := v.fs.PathJoin(v.dir, ns.String())
	v.mu.Lock()
	for made := range v.made {
		if strings.HasPrefix(made, dir) {
			delete(v.made, made)
		}
	}
	v.mu.Unlock()
	if err := v.fs.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the large values of namespace %s: %w", ns, err)
	}
	return nil
}

// isPending reports whether a write under way may still commit a file.
func (v *values) isPending(name string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.pending[strings.TrimSuffix(name, temporary)]
	return ok
}

// key reads whose value a file has.
func (v *values) key(path string) (string, error) {
	file, err := v.fs.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	header := make([]byte, len(fileMagic)+2)
	if _, err := io.ReadFull(file, header); err != nil || string(header[:len(fileMagic)]) != fileMagic {
		return "", fmt.Errorf("%s: %w: not a value's file", path, errCorrupt)
	}
	key := make([]byte, binary.BigEndian.Uint16(header[len(fileMagic):]))
	if _, err := io.ReadFull(file, key); err != nil {
		return "", fmt.Errorf("%s: %w: the key is cut", path, errCorrupt)
	}
	return string(key), nil
}

// writeChunk is the size of one write to a value's file.
const writeChunk = 256 << 10

// temporary is the suffix of a file that is being written.
const temporary = ".tmp"

// writeFile makes a file that is there in full after a crash, or not at all:
// written under a temporary name, synced, renamed, and the directory synced.
func writeFile(fsys vfs.FS, dir, name string, parts [][]byte) error {
	path := fsys.PathJoin(dir, name)
	if err := writeParts(fsys, path+temporary, parts); err != nil {
		return errors.Join(err, removeIfThere(fsys, path+temporary))
	}
	if err := fsys.Rename(path+temporary, path); err != nil {
		return errors.Join(err, removeIfThere(fsys, path+temporary))
	}
	return syncDir(fsys, dir)
}

func writeParts(fsys vfs.FS, path string, parts [][]byte) error {
	f, err := fsys.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	// A vfs.File may change the bytes that it is given, and these are not ours.
	chunk := make([]byte, 0, writeChunk)
	for _, part := range parts {
		for len(part) > 0 {
			n := min(len(part), writeChunk)
			chunk = append(chunk[:0], part[:n]...)
			if _, err := f.Write(chunk); err != nil {
				return errors.Join(err, f.Close())
			}
			part = part[n:]
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func removeIfThere(fsys vfs.FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// makeDir makes a directory, and those above it, that are there after a crash. A
// directory that exists may have been made by a process that crashed before it
// synced the one above: that one is synced in any case.
func makeDir(fsys vfs.FS, dir string) error {
	parent := fsys.PathDir(dir)
	if _, err := fsys.Stat(parent); errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := makeDir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fsys, parent)
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
