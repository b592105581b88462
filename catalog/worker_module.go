package catalog

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	// ModuleGrace is how long a module is kept that no version has: in that time the
	// version must be added for which it was put.
	ModuleGrace = time.Hour
	// modulePut bounds how many bytes of modules are put into the store at once.
	modulePut = 8 << 20
	// moduleSweep is how many modules are removed at once.
	moduleSweep = 100
)

// moduleStore is where the records of modules are.
type moduleStore struct {
	store kv.Store
	stamp *kv.Stamper
}

// UseWorkers has the catalog keep the modules of Workers in store. It is called
// once, before any of them is put or asked for.
func (c *Catalog) UseWorkers(store kv.Store, stamp *kv.Stamper) {
	c.modules.Store(&moduleStore{store, stamp})
}

// errNoModules: a program has not said where modules are.
var errNoModules error = &sentinel{"Workers are not served here", ErrUnavailable}

// hashModule returns what a module is known by.
func hashModule(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// PutModules stores the contents of modules and returns their hashes, in their
// order. When it returns they are durable; what is stored already is not written
// again. A version that has them must be added within ModuleGrace.
func (c *Catalog) PutModules(ctx context.Context, contents [][]byte) (hashes []string, err error) {
	const doing = "put modules"
	s := c.modules.Load()
	if s == nil {
		return nil, fmt.Errorf("%s: %w", doing, errNoModules)
	}
	byHash := map[string]kv.Record{}
	for _, content := range contents {
		if len(content) > MaxModuleBytes {
			return nil, fmt.Errorf("%s: %w", doing, invalid("a module has at most %d bytes, this one has %d", MaxModuleBytes, len(content)))
		}
		hash := hashModule(content)
		hashes, byHash[hash] = append(hashes, hash), kv.Record{Metadata: digest(content), Value: content}
	}
	return hashes, c.storeModules(ctx, s, doing, byHash)
}

// storeModules stores modules and static files, by what they are known by.
func (c *Catalog) storeModules(ctx context.Context, s *moduleStore, doing string, records map[string]kv.Record) error {
	rows, err := c.noteModules(ctx, records)
	if err != nil {
		return err
	}
	// A crash here, or before the end, leaves notes by which the Janitor finds what
	// was written.
	var missing []moduleRow
	for _, r := range rows {
		there, err := s.has(ctx, r)
		if err != nil {
			return failure(ctx, doing, err)
		}
		if !there {
			missing = append(missing, r)
		}
	}
	if err := s.put(ctx, missing, records); err != nil {
		return failure(ctx, doing, err)
	}
	return c.noteStored(ctx, missing)
}

// moduleRow is what the database knows of a module.
type moduleRow struct {
	hash   string
	stored bool   // the record is in the store
	swept  []byte // the version of the tombstone that was written last, or is going to be
}

func scanModule(row scanner) (moduleRow, error) {
	var r moduleRow
	var stored int64
	err := row.Scan(&r.hash, &stored, &r.swept)
	r.stored = stored != 0
	return r, err
}

// noteModules notes that modules are wanted, before they are written, so that what
// is written is known to the database whatever happens.
func (c *Catalog) noteModules(ctx context.Context, records map[string]kv.Record) (rows []moduleRow, err error) {
	err = c.change(ctx, "note modules", nil, func(tx *sql.Tx) error {
		rows = nil
		for _, hash := range slices.Sorted(maps.Keys(records)) {
			if _, err := tx.ExecContext(ctx, `insert into worker_modules (hash, size, touched, stored, gone, swept) values ($1, $2, $3, 0, 0, $4)
				on conflict (hash) do update set touched = excluded.touched, gone = 0`,
				hash, len(records[hash].Value), stored(c.now()), []byte{}); err != nil {
				return err
			}
			r, err := scanModule(tx.QueryRowContext(ctx, `select hash, stored, swept from worker_modules where hash = $1`, hash))
			if err != nil {
				return err
			}
			rows = append(rows, r)
		}
		return nil
	})
	return rows, err
}

// has reports whether a module is in the store, as the database says. It looks: a
// store can be another than it was.
func (s *moduleStore) has(ctx context.Context, r moduleRow) (bool, error) {
	if !r.stored {
		return false, nil
	}
	key := moduleKey(r.hash)
	page, err := s.store.List(ctx, Workers, kv.ListOptions{Prefix: key, Limit: 1})
	if err != nil {
		return false, fmt.Errorf("look for module %s: %w", r.hash, err)
	}
	return len(page.Keys) > 0 && page.Keys[0].Key == key && !page.Keys[0].Record.Tombstone, nil
}

// put writes modules, each newer than the tombstone of an earlier one.
func (s *moduleStore) put(ctx context.Context, rows []moduleRow, records map[string]kv.Record) error {
	var writes []kv.Write
	size := 0
	flush := func() error {
		err := kv.PutMany(ctx, s.store, writes)
		writes, size = nil, 0
		return err
	}
	for _, r := range rows {
		if len(r.swept) == len(kv.Version{}) {
			s.stamp.Observe(kv.Version(r.swept))
		}
		at, err := s.stamp.Stamp()
		if err != nil {
			return err
		}
		rec := records[r.hash]
		rec.Version = at
		writes = append(writes, kv.Write{Ref: moduleRef(r.hash), Record: rec})
		if size += len(rec.Value); size >= modulePut {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// noteStored notes that modules are in the store, unless they were swept since
// they were noted: the caller was away for longer than ModuleGrace.
func (c *Catalog) noteStored(ctx context.Context, rows []moduleRow) error {
	if len(rows) == 0 {
		return nil
	}
	return c.change(ctx, "note stored modules", nil, func(tx *sql.Tx) error {
		for _, r := range rows {
			err := one(ctx, tx, `update worker_modules set stored = 1, touched = $1 where hash = $2 and swept = $3`,
				stored(c.now()), r.hash, notNil(r.swept))
			if errors.Is(err, ErrNotFound) {
				err = fmt.Errorf("module %s: %w", r.hash, ErrConflict)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// holdModules notes that a version has modules, which must be in the store.
func (c *Catalog) holdModules(ctx context.Context, tx *sql.Tx, versionID string, m *Manifest) error {
	hashes := map[string]bool{}
	for _, f := range m.Modules {
		hashes[f.Hash] = true
	}
	if m.Assets != nil {
		hashes[m.Assets.Set] = true
	}
	for _, hash := range slices.Sorted(maps.Keys(hashes)) { // in order: no two versions wait for each other
		// From here on no sweep takes it. One that waits for this transaction sees of it
		// the row alone, not that a version has the module: so the row must tell.
		err := one(ctx, tx, `update worker_modules set touched = $1 where hash = $2 and stored = 1`, stored(c.now()), hash)
		if errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("module %s is not stored: %w", hash, ErrConflict)
		}
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `insert into worker_version_modules (version_id, hash) values ($1, $2)`, versionID, hash); err != nil {
			return err
		}
	}
	return nil
}

// releaseModules has the modules of versions, which a condition names, be kept for
// ModuleGrace from now on: somebody may be about to start one of those.
func (c *Catalog) releaseModules(ctx context.Context, tx *sql.Tx, condition string, arg any) error {
	_, err := tx.ExecContext(ctx, `update worker_modules set touched = $2 where hash in (select hash from worker_version_modules
		where version_id in (select id from worker_versions where `+condition+`))`, arg, stored(c.now()))
	return err
}

// ModuleContent returns the content of a module, or ErrNotFound.
func (c *Catalog) ModuleContent(ctx context.Context, hash string) ([]byte, error) {
	doing := fmt.Sprintf("module %q", hash)
	s := c.modules.Load()
	if s == nil {
		return nil, fmt.Errorf("%s: %w", doing, errNoModules)
	}
	rec, err := s.store.Get(ctx, moduleRef(hash), 0)
	if err != nil {
		return nil, failure(ctx, doing, err)
	}
	content, err := moduleOf(hash, rec)
	return content, failure(ctx, doing, err)
}

// moduleOf returns what a record of a module holds, or ErrNotFound.
func moduleOf(hash string, rec kv.Record) ([]byte, error) {
	switch {
	case rec.Absent() || rec.Tombstone:
		return nil, ErrNotFound
	case hashModule(rec.Value) != hash:
		return nil, fmt.Errorf("%w: its content has another hash", kv.ErrDamaged)
	}
	return rec.Value, nil
}

func moduleRef(hash string) kv.Ref { return kv.Ref{Namespace: Workers, Key: moduleKey(hash)} }

// sweepModules removes the modules that no version has had for ModuleGrace. The
// note of a module outlives its record by as long again, so that whoever puts the
// module meanwhile knows which tombstone is to be outdone.
func (c *Catalog) sweepModules(ctx context.Context) error {
	s := c.modules.Load()
	if s == nil {
		return nil
	}
	for {
		at, err := s.stamp.Stamp()
		if err != nil {
			return fmt.Errorf("sweep modules: %w", err)
		}
		before := stored(c.now().Add(-ModuleGrace))
		doomed, err := c.doomModules(ctx, at, before)
		if err != nil || len(doomed) == 0 {
			return err
		}
		// A crash here has them found again: nothing says that they are gone.
		var writes []kv.Write
		for _, hash := range doomed {
			writes = append(writes, kv.Write{Ref: moduleRef(hash), Record: kv.Tombstone(at)})
		}
		if err := kv.PutMany(ctx, s.store, writes); err != nil {
			return fmt.Errorf("sweep modules: %w", err)
		}
		if err := c.noteGone(ctx, at, before, doomed); err != nil {
			return err
		}
	}
}

// unheld is the condition that no version has a module, no set has it as a static
// file, and that it was not wanted since $1.
const unheld = `touched <= $1 and not exists (select 1 from worker_version_modules v where v.hash = worker_modules.hash)
	and not exists (select 1 from worker_assets a where a.asset = worker_modules.hash)`

// doomModules forgets the modules that have been gone for long, and notes that
// others are about to be removed, by tombstones of a version: none of them can be
// given to a version from then on unless it is put again.
func (c *Catalog) doomModules(ctx context.Context, at kv.Version, before int64) (hashes []string, err error) {
	err = c.change(ctx, "sweep modules", nil, func(tx *sql.Tx) error {
		hashes = nil
		if _, err := tx.ExecContext(ctx, `delete from worker_modules where gone = 1 and `+unheld, before); err != nil {
			return err
		}
		list, err := keysOf(ctx, tx, strings.Clone, fmt.Sprintf(`select hash from worker_modules
			where gone = 0 and %s order by hash limit %d`, unheld, moduleSweep), before)
		if err != nil {
			return err
		}
		for _, hash := range list {
			// Whoever puts it, or sweeps too, waits here: the condition is asked again.
			err := one(ctx, tx, `update worker_modules set stored = 0, swept = $2 where hash = $3 and gone = 0 and `+unheld, before, at[:], hash)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `delete from worker_assets where version_set = $1`, hash); err != nil {
				return err
			}
			hashes = append(hashes, hash)
		}
		return nil
	})
	return hashes, err
}

// noteGone notes that the records of modules are tombstones, of those that nobody
// wanted meanwhile.
func (c *Catalog) noteGone(ctx context.Context, at kv.Version, before int64, hashes []string) error {
	return c.change(ctx, "note swept modules", nil, func(tx *sql.Tx) error {
		for _, hash := range hashes {
			if _, err := tx.ExecContext(ctx, `update worker_modules set gone = 1, touched = $1 where hash = $2 and swept = $3 and touched <= $4`,
				stored(c.now()), hash, at[:], before); err != nil {
				return err
			}
		}
		return nil
	})
}
