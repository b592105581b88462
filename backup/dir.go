package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nearkey/nearkey/internal/blob"
)

// Dir is a bucket in a directory: a file for each name, readable by its owner
// alone. Names are those that this package makes: parts of letters, digits, dots
// and hyphens between slashes.
type Dir struct{ path string }

// OpenDir returns the bucket in a directory, which the first Put makes.
func OpenDir(path string) *Dir { return &Dir{path} }

func (d *Dir) file(name string) (string, error) {
	local := filepath.FromSlash(name)
	if !filepath.IsLocal(local) {
		return "", fmt.Errorf("%q is no name of a blob", name)
	}
	return filepath.Join(d.path, local), nil
}

// Put writes a file beside its place, and gives it its name when it is on stable
// storage. A crash leaves a file whose name ends in .tmp.
func (d *Dir) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	path, err := d.file(name)
	if err != nil {
		return err
	}
	parent := filepath.Dir(path)
	if err := makeDirs(parent); err != nil {
		return err
	}
	temporary := path + tmpSuffix
	if err := writeSynced(temporary, data); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(temporary)))
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDir(parent)
}

const tmpSuffix = ".tmp"

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// makeDirs makes a directory and those above it, durably.
func makeDirs(path string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Get returns what a file holds.
func (d *Dir) Get(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	path, err := d.file(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err == nil && len(data) > maxManifestBytes {
		err = fmt.Errorf("%s has more than %d bytes: nothing of a backup has", path, maxManifestBytes)
	}
	return data, err
}

// List returns the files whose names begin with prefix, which ends with a slash,
// and are greater than after.
func (d *Dir) List(ctx context.Context, prefix, after string, limit int) (infos []blob.Info, more bool, err error) {
	if limit < 1 || limit > blob.MaxList {
		limit = blob.MaxList
	}
	root, err := d.file(strings.TrimSuffix(prefix, "/"))
	if err != nil {
		return nil, false, err
	}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		relative, err := filepath.Rel(d.path, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(relative)
		switch {
		case entry.IsDir() && name+"/" < after && !strings.HasPrefix(after, name+"/"):
			return fs.SkipDir
		case !entry.Type().IsRegular() || strings.HasSuffix(name, tmpSuffix) || name <= after:
			return nil
		case len(infos) == limit:
			more = true
			return fs.SkipAll
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		infos = append(infos, blob.Info{Name: name, Size: info.Size(), Modified: info.ModTime()})
		return nil
	})
	if err = ignoreMissing(err); err != nil {
		return nil, false, fmt.Errorf("list %s: %w", root, err)
	}
	return infos, more, nil
}

// Delete removes files, and the directories that are then empty.
func (d *Dir) Delete(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		path, err := d.file(name)
		if err != nil {
			return err
		}
		if err := ignoreMissing(os.Remove(path)); err != nil {
			return err
		}
		_ = os.Remove(filepath.Dir(path)) // fails while something is in it
	}
	return nil
}
