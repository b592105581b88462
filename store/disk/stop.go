package disk

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// stopFS is the file system that Pebble sees. A write that the disk failed must
// not be tried again, for what the system holds of it is unknown; and Pebble
// answers some such failures by ending the process without a word. So the store
// fails as a whole: the error is told (Store.fail), the goroutine that met it
// stops where it is, what was acknowledged is on disk, reads go on, and the next
// start recovers.
type stopFS struct {
	vfs.FS
	s *Store
}

// check passes an error on until the store is open, and stops the caller after.
func (f stopFS) check(what string, err error) {
	if err == nil || !f.s.armed.Load() {
		return
	}
	f.s.fail(fmt.Errorf("%s: %w", what, err))
	select {}
}

func (f stopFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, category)
	f.check("create "+name, err)
	return f.wrap(name, file, err)
}

func (f stopFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, category, opts...)
	f.check("open "+name, err)
	return f.wrap(name, file, err)
}

func (f stopFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(oldname, newname, category)
	f.check("reuse for "+newname, err)
	return f.wrap(newname, file, err)
}

func (f stopFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	f.check("open "+name, err)
	return f.wrap(name, file, err)
}

func (f stopFS) Rename(oldname, newname string) error {
	err := f.FS.Rename(oldname, newname)
	f.check("rename to "+newname, err)
	return err
}

func (f stopFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return stopFile{File: file, fs: f, name: name}, nil
}

type stopFile struct {
	vfs.File
	fs   stopFS
	name string
}

func (f stopFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.fs.check("write "+f.name, err)
	return n, err
}

func (f stopFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	f.fs.check("write "+f.name, err)
	return n, err
}

func (f stopFile) Sync() error {
	err := f.File.Sync()
	f.fs.check("sync "+f.name, err)
	return err
}

func (f stopFile) SyncData() error {
	err := f.File.SyncData()
	f.fs.check("sync "+f.name, err)
	return err
}

func (f stopFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	f.fs.check("sync "+f.name, err)
	return full, err
}
