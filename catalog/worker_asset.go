package catalog

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nearkey/nearkey/internal/assets"
	"github.com/nearkey/nearkey/kv"
)

// Static assets of Workers. A file is a record of Workers, by its account and the
// hash that the client gave it: what is behind that hash is the client's to know,
// so no account shares a file with another. Which files a version has is a set:
// their paths, hashes and sizes, stored as a module is, by its content. Files are
// kept as long as a set is that has them, and a set as a module is.

const (
	// MaxAssets is the greatest number of files in a set.
	MaxAssets = 20_000
	// MaxAssetBytes is the greatest size of a file.
	MaxAssetBytes = kv.MaxValueBytes
	// MaxAssetTypeBytes is the greatest length of a file's content type.
	MaxAssetTypeBytes = 256
	// assetRows is how many files are noted with one statement.
	assetRows = 500
)

// An Asset is what a set says of a file.
type Asset struct {
	Hash string `json:"hash"` // 32 hexadecimal digits, the client's
	Size int64  `json:"size"`
}

// An AssetSet is the static files of a version, by their paths.
type AssetSet map[string]Asset

// assetSetRecord is a set as it is stored.
type assetSetRecord struct {
	Format  int      `json:"format"`
	Account string   `json:"account"`
	Assets  AssetSet `json:"assets"`
}

var assetHash = regexp.MustCompile(`^[0-9a-f]{32}$`)

func (s AssetSet) check() error {
	if len(s) > MaxAssets {
		return invalid("a version has at most %d static files, these are %d", MaxAssets, len(s))
	}
	sizes := map[string]int64{}
	for path, a := range s {
		size, again := sizes[a.Hash]
		switch {
		case !strings.HasPrefix(path, "/") || len(path) > assets.MaxPathBytes || !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl):
			return invalid("the path of a static file begins with a slash and has at most %d bytes of UTF-8, %q is none", assets.MaxPathBytes, path)
		case !assetHash.MatchString(a.Hash):
			return invalid("static file %s: its hash has 32 hexadecimal digits, %q is none", path, a.Hash)
		case a.Size < 0 || a.Size > MaxAssetBytes:
			return invalid("static file %s has %d bytes, a file has at most %d", path, a.Size, int64(MaxAssetBytes))
		case again && size != a.Size:
			return invalid("static file %s: another with its hash has another size", path)
		}
		sizes[a.Hash] = a.Size
	}
	return nil
}

// assetID is what a file is known by among modules.
func assetID(accountID, hash string) string { return accountID + "/" + hash }

func parseAssetSet(accountID string, content []byte) (AssetSet, error) {
	r, err := parseRecord[assetSetRecord](content)
	if err == nil && r.Account != accountID {
		err = ErrNotFound
	}
	return r.Assets, err
}

// BeginAssets notes a set and returns what it is known by, and the hashes of those
// of its files that are not stored. A version with the set must be added within
// ModuleGrace.
func (c *Catalog) BeginAssets(ctx context.Context, accountID string, files AssetSet) (set string, missing []string, err error) {
	const doing = "begin to store static files"
	if err := files.check(); err != nil {
		return "", nil, fmt.Errorf("%s: %w", doing, err)
	}
	if files == nil {
		files = AssetSet{}
	}
	text, err := json.Marshal(assetSetRecord{recordFormat, accountID, files})
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", doing, err)
	}
	hashes, err := c.PutModules(ctx, [][]byte{text})
	if err != nil {
		return "", nil, err
	}
	set = hashes[0]
	ids := map[string]bool{}
	for _, a := range files {
		ids[assetID(accountID, a.Hash)] = true
	}
	lost, err := c.lostAssets(ctx, accountID, ids)
	if err != nil {
		return "", nil, failure(ctx, doing, err)
	}
	err = c.change(ctx, doing, nil, func(tx *sql.Tx) error {
		if err := one(ctx, tx, `update worker_modules set touched = $1 where hash = $2 and stored = 1`, stored(c.now()), set); err != nil {
			return absentIs(ErrConflict, err)
		}
		for chunk := range slices.Chunk(slices.Sorted(maps.Keys(ids)), assetRows) {
			if err := insertAssets(ctx, tx, set, chunk); err != nil {
				return err
			}
		}
		for chunk := range slices.Chunk(lost, assetRows) {
			if err := noteLost(ctx, tx, chunk); err != nil {
				return err
			}
		}
		// A sweep that waits for this transaction sees of it these rows alone.
		if _, err := tx.ExecContext(ctx, `update worker_modules set touched = $1 where hash in (select asset from worker_assets where version_set = $2)`,
			stored(c.now()), set); err != nil {
			return err
		}
		missing, err = missingAssets(ctx, tx, set, MaxAssets)
		return err
	})
	return set, missing, err
}

// lostAssets returns those of some files of which the database says that they are
// stored and that are not: a store can be another than it was.
func (c *Catalog) lostAssets(ctx context.Context, accountID string, ids map[string]bool) ([]string, error) {
	s := c.modules.Load()
	left := map[string]bool{}
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(ids)), assetRows) {
		places, args := inList(chunk)
		// Asked for first: what is stored from here on is not lost.
		stored, err := keysOf(ctx, c.db.read, strings.Clone, `select hash from worker_modules where stored = 1 and hash in (`+places+`)`, args...)
		if err != nil {
			return nil, err
		}
		for _, id := range stored {
			left[id] = true
		}
	}
	opts := kv.ListOptions{Prefix: moduleKey(assetID(accountID, ""))}
	for more := len(left) > 0; more; {
		page, err := s.store.List(ctx, Workers, opts)
		if err != nil {
			return nil, fmt.Errorf("look for static files: %w", err)
		}
		for i := range page.Keys {
			if !page.Keys[i].Record.Tombstone {
				delete(left, strings.TrimPrefix(page.Keys[i].Key, assetPrefix))
			}
		}
		opts.After, more = page.Last, page.More && len(left) > 0
	}
	return slices.Sorted(maps.Keys(left)), nil
}

// noteLost notes that files are not stored.
func noteLost(ctx context.Context, tx *sql.Tx, ids []string) error {
	places, args := inList(ids)
	_, err := tx.ExecContext(ctx, `update worker_modules set stored = 0 where hash in (`+places+`)`, args...)
	return err
}

// inList is what goes between the parentheses of a condition in (...).
func inList(ids []string) (places string, args []any) {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i], args = fmt.Sprintf("$%d", i+1), append(args, id)
	}
	return strings.Join(list, ", "), args
}

func insertAssets(ctx context.Context, tx *sql.Tx, set string, ids []string) error {
	var rows strings.Builder
	args := []any{set}
	for i, id := range ids {
		if i > 0 {
			rows.WriteByte(',')
		}
		fmt.Fprintf(&rows, "($1, $%d)", i+2)
		args = append(args, id)
	}
	_, err := tx.ExecContext(ctx, `insert into worker_assets (version_set, asset) values `+rows.String()+` on conflict (version_set, asset) do nothing`, args...)
	return err
}

// missingAssets returns the hashes of at most limit files of a set that are not
// stored.
func missingAssets(ctx context.Context, tx querier, set string, limit int) ([]string, error) {
	return keysOf(ctx, tx, func(id string) string {
		_, hash, _ := strings.Cut(id, "/")
		return hash
	}, fmt.Sprintf(`select a.asset from worker_assets a left join worker_modules m on m.hash = a.asset and m.stored = 1
		where a.version_set = $1 and m.hash is null order by a.asset limit %d`, limit), set)
}

// AssetSet returns a set of an account, or ErrNotFound.
func (c *Catalog) AssetSet(ctx context.Context, accountID, set string) (AssetSet, error) {
	text, err := c.ModuleContent(ctx, set)
	if err != nil {
		return nil, err
	}
	files, err := parseAssetSet(accountID, text)
	return files, failure(ctx, fmt.Sprintf("static files %q", set), err)
}

// An AssetContent is a static file.
type AssetContent struct {
	Hash    string // as its set has it
	Type    string // its content type; empty: none
	Content []byte
}

// assetMetadata is the metadata of the record of a file.
type assetMetadata struct {
	Type string `json:"type,omitempty"`
}

// PutAssets stores files of a set, and reports whether it is complete then. When it
// returns the files are durable; what is stored already is not written again.
func (c *Catalog) PutAssets(ctx context.Context, accountID, set string, files []AssetContent) (complete bool, err error) {
	const doing = "put static files"
	s := c.modules.Load()
	if s == nil {
		return false, fmt.Errorf("%s: %w", doing, errNoModules)
	}
	records := map[string]kv.Record{}
	for _, f := range files {
		if len(f.Content) > MaxAssetBytes || len(f.Type) > MaxAssetTypeBytes || !utf8.ValidString(f.Type) {
			return false, fmt.Errorf("%s: %w", doing, invalid("a static file has at most %d bytes, and its content type at most %d", int64(MaxAssetBytes), MaxAssetTypeBytes))
		}
		metadata, err := json.Marshal(assetMetadata{f.Type})
		if err != nil {
			return false, fmt.Errorf("%s: %w", doing, err)
		}
		records[assetID(accountID, f.Hash)] = kv.Record{Metadata: metadata, Value: f.Content}
	}
	if err := c.storeModules(ctx, s, doing, records); err != nil {
		return false, err
	}
	err = c.change(ctx, doing, nil, func(tx *sql.Tx) error {
		if err := one(ctx, tx, `update worker_modules set touched = $1 where hash = $2 and stored = 1`, stored(c.now()), set); err != nil {
			return err // ErrNotFound: the set was swept
		}
		missing, err := missingAssets(ctx, tx, set, 1)
		complete = len(missing) == 0
		return err
	})
	return complete, err
}

// AssetsComplete reports whether all files of a set are stored.
func (c *Catalog) AssetsComplete(ctx context.Context, set string) (bool, error) {
	missing, err := missingAssets(ctx, c.db.read, set, 1)
	return len(missing) == 0, failure(ctx, "look for static files", err)
}

// WorkerAssets are the static files of a version and how they answer.
type WorkerAssets struct {
	Set              string   `json:"set"` // what BeginAssets returned
	HTMLHandling     string   `json:"html_handling,omitempty"`
	NotFoundHandling string   `json:"not_found_handling,omitempty"`
	WorkerFirst      bool     `json:"worker_first,omitempty"` // run_worker_first: true
	WorkerRules      []string `json:"worker_rules,omitempty"` // run_worker_first: [...]
	Redirects        string   `json:"_redirects,omitempty"`
	Headers          string   `json:"_headers,omitempty"`
}

// AssetOptions is how the static files of a version answer.
func (m *Manifest) AssetOptions() assets.Options {
	a := m.Assets
	return assets.Options{HTML: a.HTMLHandling, NotFound: a.NotFoundHandling, Worker: m.Main != "",
		WorkerFirst: a.WorkerFirst, WorkerRules: a.WorkerRules, Redirects: a.Redirects, Headers: a.Headers,
		Date: m.CompatibilityDate, Flags: m.Flags}
}

// holdAssets checks that the set of a version is complete, which holdModules holds.
func holdAssets(ctx context.Context, tx *sql.Tx, a *WorkerAssets) error {
	if a == nil {
		return nil
	}
	missing, err := missingAssets(ctx, tx, a.Set, 1)
	if err == nil && len(missing) > 0 {
		err = invalid("the static file %s is not stored: upload it again", missing[0])
	}
	return err
}

// Assets returns the static files of a set of an account, or ErrNotFound.
func (r *WorkerReplica) Assets(ctx context.Context, accountID, set string) (AssetSet, error) {
	text, err := r.Module(ctx, set)
	if err != nil {
		return nil, err
	}
	files, err := parseAssetSet(accountID, text)
	return files, failure(ctx, fmt.Sprintf("static files %q", set), err)
}

// Asset returns a static file of an account, or ErrNotFound. The content is not to
// be changed.
func (r *WorkerReplica) Asset(ctx context.Context, accountID, hash string) (AssetContent, error) {
	doing := fmt.Sprintf("static file %q", hash)
	rec, err := r.immutable(ctx, moduleKey(assetID(accountID, hash)))
	if err != nil {
		return AssetContent{}, absentIs(ErrNotFound, failure(ctx, doing, err))
	}
	var metadata assetMetadata
	if err := json.Unmarshal(rec.Metadata, &metadata); err != nil {
		return AssetContent{}, fmt.Errorf("%s: %w: %w", doing, kv.ErrDamaged, err)
	}
	return AssetContent{hash, metadata.Type, rec.Value}, nil
}

// Sign returns what proves that a text was given out here, by a key that nothing
// else is done with.
func (k *Keys) Sign(text []byte) []byte { return mac(k.keys[0].signing[:], text) }

// Signed reports whether Sign gave out a text, with any of the keys.
func (k *Keys) Signed(text, signature []byte) bool {
	return slices.ContainsFunc(k.keys, func(key sealingKey) bool { return hmac.Equal(signature, mac(key.signing[:], text)) })
}

func mac(key, text []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(text)
	return m.Sum(nil)
}
