package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/nearkey/nearkey/client"
)

// directory yields the files below a directory, in the order of their names; a
// file's key is its path with slashes.
//
// Nothing is left out without a word: an empty file is an empty value; what is
// neither a file nor a directory (a symbolic link, a socket) is skipped and
// named, and a file that cannot be read, is too large or has a name that no key
// can have is refused and named. Links are not followed: what they lead to is
// imported where it is, or is not below the directory.
type directory struct {
	root   string
	prefix string
	pull   func() (entry, bool)
	stop   func()
	done   int64 // bytes
}

// entry is what a walk meets: a path that is no directory, or one that cannot be looked at.
type entry struct {
	path string
	info fs.FileInfo
	err  error
}

func openDirectory(root, prefix string) *source {
	d := &directory{root: root, prefix: prefix}
	s := &source{itemReader: d, closer: d}
	sum := sha256.New()
	for e := range d.walk() {
		if e.info == nil {
			continue
		}
		if e.info.Mode().IsRegular() {
			s.bytes += e.info.Size()
		}
		fmt.Fprintf(sum, "%q %v %d %d\n", strings.TrimPrefix(e.path, root), e.info.Mode().Type(), e.info.Size(), e.info.ModTime().UnixNano())
	}
	s.identity = identity{Bytes: s.bytes, Listing: hex.EncodeToString(sum.Sum(nil))}
	d.pull, d.stop = iter.Pull(d.walk())
	return s
}

// walk yields all there is below the root but directories.
func (d *directory) walk() iter.Seq[entry] {
	return func(yield func(entry) bool) {
		_ = filepath.WalkDir(d.root, func(path string, de fs.DirEntry, err error) error {
			e := entry{path: path, err: err}
			if err == nil && de.IsDir() {
				return nil
			}
			if err == nil {
				e.info, e.err = de.Info()
			}
			if !yield(e) {
				return fs.SkipAll
			}
			return nil
		})
	}
}

func (d *directory) next() (item, error) {
	e, ok := d.pull()
	if !ok {
		return item{}, io.EOF
	}
	name, err := filepath.Rel(d.root, e.path)
	if err != nil {
		return item{}, err
	}
	it := item{Pair: client.Pair{Key: d.prefix + filepath.ToSlash(name)}, where: e.path}
	switch {
	case e.err != nil:
		it.refused = e.err
	case e.info.Mode().IsRegular():
		d.read(&it, e)
	default:
		it.skipped = kind(e.info.Mode())
	}
	return it, nil
}

// read takes a small file into memory; a large one is opened when it is sent.
func (d *directory) read(it *item, e entry) {
	it.bytes = e.info.Size()
	d.done += it.bytes
	if it.bytes >= singleBytes {
		body := diskBody(e.path, it.bytes)
		it.file = &body
		return
	}
	f, err := os.Open(e.path)
	if err != nil {
		it.refused = err
		return
	}
	defer f.Close()
	var buf bytes.Buffer
	buf.Grow(int(it.bytes) + bytes.MinRead)
	if _, err := buf.ReadFrom(io.LimitReader(f, singleBytes+1)); err != nil {
		it.refused = err
		return
	}
	if it.Value = buf.Bytes(); len(it.Value) > singleBytes {
		it.refused = fmt.Errorf("it grew while it was read")
	}
}

// kind says what is neither a file nor a directory.
func kind(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "not a regular file"
}

func (d *directory) skip(n int64) error {
	for range n {
		e, ok := d.pull()
		if !ok {
			return fmt.Errorf("it has fewer files than were imported before")
		}
		if e.info != nil && e.info.Mode().IsRegular() {
			d.done += e.info.Size()
		}
	}
	return nil
}

func (d *directory) place() (int64, string) { return d.done, "" }

// Close ends the walk.
func (d *directory) Close() error {
	d.stop()
	return nil
}
