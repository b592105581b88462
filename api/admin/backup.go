package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/nearkey/nearkey/backup"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// Limits of backups.
const (
	// maxSnapshotBytes bounds what is asked to be backed up: about a hundred
	// thousand namespaces.
	maxSnapshotBytes = 16 << 20
	// backupStall is how long a caller may take for a part of a snapshot, or between
	// two parts of what is restored: it stores or fetches them elsewhere.
	backupStall = 5 * time.Minute
	// drainWithin is how long what is still sent is read after an answer, so that
	// the sender gets to read the answer.
	drainWithin = 5 * time.Second
	// placeWait is how long a backup or restore waits for the end of another one.
	placeWait = time.Second
)

// BackupConfig says what is backed up and restored. All but Acks and Logger must be set.
type BackupConfig struct {
	Barrier   *backup.Barrier // before the store of record: all writes pass it
	Front     kv.Store        // what users read and write
	Catalog   *catalog.Catalog
	Acks      Acks // nil: there is no gateway
	Stamp     *kv.Stamper
	Account   string        // the root's: it tells the installation from others, and owns what belongs to an account that is not here
	Retention time.Duration // tombstones are kept for so long; 0: for ever
	Version   string        // of the program
	Logger    *slog.Logger  // nil: no log
}

// Backups serves snapshots and takes what is restored:
//
//	GET  /backup/namespaces   what there is to back up
//	POST /backup/snapshot     take snapshots: a stream of package backup
//	POST /backup/restore      put one namespace back: the body is such a stream (lines)
//
// One snapshot and one restore are under way at once.
type Backups struct {
	config    BackupConfig
	taking    chan struct{} // a place for a snapshot
	restoring chan struct{} // and one for a restore
}

// NewBackups returns the backups of a server.
func NewBackups(config BackupConfig) *Backups {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Backups{config: config, taking: make(chan struct{}, 1), restoring: make(chan struct{}, 1)}
}

// Register adds the paths to a handler.
func (b *Backups) Register(h *Handler) {
	h.Handle("GET "+Prefix+"backup/namespaces", func(w http.ResponseWriter, r *http.Request) error { return b.namespaces(h, w, r) })
	h.Handle("POST "+Prefix+"backup/snapshot", func(w http.ResponseWriter, r *http.Request) error { return b.snapshot(h, w, r) })
	h.Handle("POST "+Prefix+"backup/restore", func(w http.ResponseWriter, r *http.Request) error { return b.restore(h, w, r) })
}

// BackupNamespaces is what there is to back up.
type BackupNamespaces struct {
	Origin           string             `json:"origin"`
	Account          string             `json:"account"`
	RetentionSeconds int64              `json:"retention_seconds"` // deletions are remembered for so long; 0: for ever
	Namespaces       []backup.Namespace `json:"namespaces"`
}

// BackupRequest asks for snapshots of namespaces. Of each only the id is read.
type BackupRequest struct {
	Namespaces     []backup.Wanted `json:"namespaces"`
	MarginMillis   int64           `json:"margin_ms,omitempty"`
	MaxPauseMillis int64           `json:"max_pause_ms,omitempty"`
}

func (b *Backups) namespaces(h *Handler, w http.ResponseWriter, r *http.Request) error {
	answer := BackupNamespaces{Origin: b.config.Account, Account: b.config.Account,
		RetentionSeconds: int64(b.config.Retention / time.Second), Namespaces: []backup.Namespace{}}
	var err error
	if answer.Namespaces, err = b.every(r.Context()); err != nil {
		return err
	}
	h.Answer(w, answer)
	return nil
}

// every lists the namespaces of all accounts.
func (b *Backups) every(ctx context.Context) ([]backup.Namespace, error) {
	list := []backup.Namespace{}
	var after kv.NamespaceID
	for {
		page, err := b.config.Catalog.EveryNamespace(ctx, after, catalog.MaxNamespacePage)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return list, nil
		}
		for _, n := range page {
			after = n.ID
			told := backup.Namespace{ID: n.ID.String(), Title: n.Title, Account: n.AccountID, Jurisdiction: n.Jurisdiction, Created: n.Created}
			if b.config.Acks != nil {
				ack, err := b.config.Acks.Get(ctx, n.ID)
				if errors.Is(err, catalog.ErrNotFound) {
					continue // it was deleted just now
				}
				if err != nil {
					return nil, err
				}
				told.Ack = string(ack)
			}
			list = append(list, told)
		}
	}
}

// place takes a place, or says that there is none. It waits a moment: who was told
// that the last one has ended may be back before its place is free.
func place(ctx context.Context, places chan struct{}, what string) (release func(), err error) {
	timer := time.NewTimer(placeWait)
	defer timer.Stop()
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, &Error{http.StatusConflict, CodeRefused, "another " + what + " is under way; try again when it has ended"}
	}
}

func (b *Backups) snapshot(h *Handler, w http.ResponseWriter, r *http.Request) error {
	release, err := place(r.Context(), b.taking, "backup")
	if err != nil {
		return err
	}
	defer release()
	asked, err := b.asked(w, r)
	if err != nil {
		return err
	}
	taker := backup.Snapshotter{
		Barrier: b.config.Barrier, Origin: b.config.Account, Version: b.config.Version, Retention: b.config.Retention,
		Margin: time.Duration(asked.MarginMillis) * time.Millisecond, MaxPause: time.Duration(asked.MaxPauseMillis) * time.Millisecond,
	}
	if err := taker.Check(asked.Namespaces); err != nil {
		return Refused(err)
	}
	ctx, cancel := h.until(r.Context())
	defer cancel()
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // the request is read; its caller may wait for long
	w.Header().Set("Content-Type", "application/octet-stream")
	began := time.Now()
	sent := &stream{w: w}
	err = taker.Run(ctx, asked.Namespaces, sent)
	if err != nil {
		b.config.Logger.WarnContext(ctx, "admin: a backup went wrong", "namespaces", len(asked.Namespaces), "error", err)
		return nil // it was told in the stream
	}
	b.config.Logger.InfoContext(ctx, "admin: a backup was taken", "namespaces", len(asked.Namespaces), "bytes", sent.bytes, "took", time.Since(began))
	return nil
}

// until is ctx, but ends when the server is to end.
func (h *Handler) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		select {
		case <-h.ending:
			cancel(errStopping)
		case <-ctx.Done():
		}
		close(ended)
	}()
	return ctx, func() { cancel(nil); <-ended }
}

// asked reads what is to be backed up, with what the catalog knows of it.
func (b *Backups) asked(w http.ResponseWriter, r *http.Request) (BackupRequest, error) {
	var asked BackupRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxSnapshotBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&asked); err != nil {
		return asked, invalid("read the request: %v", err)
	}
	if asked.MarginMillis < 0 || asked.MaxPauseMillis < 0 || asked.MaxPauseMillis > int64(maxPause/time.Millisecond) {
		return asked, invalid("the margin must not be negative, nor the pause, which may be at most %s", maxPause)
	}
	known, err := b.every(r.Context())
	if err != nil {
		return asked, err
	}
	byID := map[string]backup.Namespace{}
	for _, n := range known {
		byID[n.ID] = n
	}
	seen := map[string]bool{}
	for i := range asked.Namespaces {
		want := &asked.Namespaces[i]
		id, err := parseNamespace(want.ID)
		if err != nil {
			return asked, err
		}
		if seen[id.String()] {
			return asked, invalid("namespace %s is named twice", id)
		}
		seen[id.String()] = true
		want.Namespace = byID[id.String()] // of one that the catalog does not know there is the id
		want.ID = id.String()
	}
	return asked, nil
}

// maxPause is the longest pause of writes that may be asked for.
const maxPause = 10 * time.Second

// stream is an answer of any length whose caller has backupStall for each part.
type stream struct {
	w     http.ResponseWriter
	bytes int64
}

func (s *stream) Write(p []byte) (int, error) {
	control := http.NewResponseController(s.w)
	_ = control.SetWriteDeadline(time.Now().Add(backupStall)) // a writer that knows none has no slow caller
	n, err := s.w.Write(p)
	s.bytes += int64(n)
	if err != nil {
		return n, err
	}
	if err := control.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return n, err
	}
	return n, nil
}

// patient is a request body whose sender has backupStall for each part.
type patient struct {
	body    io.Reader
	control *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.control.SetReadDeadline(time.Now().Add(backupStall)) // as in stream
	n, err := p.body.Read(b)
	if err != nil {
		_ = p.control.SetReadDeadline(time.Time{}) // nothing more is read, but the answer is written
	}
	return n, err
}

// drain reads what is still sent, for a while: a sender that is cut off at once
// might not see the answer.
func drain(r *http.Request, control *http.ResponseController) {
	_ = control.SetReadDeadline(time.Now().Add(drainWithin))
	_, _ = io.Copy(io.Discard, r.Body) // the answer was given
}

func (b *Backups) restore(h *Handler, w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	// The answer begins while the body is read.
	if err := control.EnableFullDuplex(); err != nil && r.ProtoMajor < 2 {
		return fmt.Errorf("read and write at once: %w", err)
	}
	err := b.restoreFrom(h, w, r, &patient{r.Body, control})
	if err != nil {
		h.Fail(w, r, err)
		_ = control.Flush() // who is gone needs no answer
	}
	drain(r, control)
	return nil
}

func (b *Backups) restoreFrom(h *Handler, w http.ResponseWriter, r *http.Request, body io.Reader) error {
	release, err := place(r.Context(), b.restoring, "restore")
	if err != nil {
		return err
	}
	defer release()
	in, err := backup.Receive(body)
	if err != nil {
		return refusal(err)
	}
	if err := b.prepare(r.Context(), in); err != nil {
		return err
	}
	restorer := backup.Restorer{Barrier: b.config.Barrier, Front: b.config.Front, Stamp: b.config.Stamp, Retention: b.config.Retention}
	return h.Work(w, r, func(ctx context.Context, progress func(any)) (any, error) {
		began := time.Now()
		result, err := restorer.Restore(ctx, in, func(sofar backup.Result) { progress(sofar) })
		if err != nil {
			return nil, refusal(err)
		}
		if err := b.register(ctx, in); err != nil {
			return nil, err
		}
		b.config.Logger.InfoContext(ctx, "admin: a namespace was restored", "namespace", in.Target.ID, "cut", in.Target.Cut, "rewind", in.Target.Rewind,
			"received", result.Received, "written", result.Written, "deleted", result.Deleted, "took", time.Since(began))
		return result, nil
	})
}

// refusal is the answer to what cannot be restored.
func refusal(err error) error {
	switch {
	case errors.Is(err, backup.ErrRefused), errors.Is(err, backup.ErrTooOld):
		return Refused(err)
	case errors.Is(err, backup.ErrCut), errors.Is(err, backup.ErrDamaged):
		return invalid("%v", err)
	}
	return err
}

// prepare finds out whether a namespace may be restored before anything is done.
func (b *Backups) prepare(ctx context.Context, in *backup.Incoming) error {
	target := &in.Target.Namespace
	if target.Title == "" {
		known, err := b.every(ctx)
		if err != nil {
			return err
		}
		for _, n := range known {
			if n.ID == in.NamespaceID().String() {
				return nil
			}
		}
		return notFound("there is no namespace %s to restore into", target.ID)
	}
	switch _, err := b.config.Catalog.Account(ctx, target.Account); {
	case errors.Is(err, catalog.ErrNotFound):
		target.Account = b.config.Account
	case err != nil:
		return err
	}
	return restorable(b.config.Catalog.CheckRestore(ctx, entry(in)), target.Title)
}

func entry(in *backup.Incoming) catalog.Namespace {
	n := in.Target.Namespace
	return catalog.Namespace{ID: in.NamespaceID(), AccountID: n.Account, Title: n.Title, Jurisdiction: n.Jurisdiction, Created: n.Created}
}

// restorable says what to do about a namespace that cannot be what it was.
func restorable(err error, title string) error {
	switch {
	case errors.Is(err, catalog.ErrTitleTaken):
		return &Error{http.StatusConflict, CodeRefused, fmt.Sprintf("another namespace has the title %q; restore into one of your choice (--namespace OLD=NEW)", title)}
	case errors.Is(err, catalog.ErrDropped):
		return &Error{http.StatusConflict, CodeRefused, fmt.Sprintf("namespace %q was deleted less than %s ago and is still being removed; restore into another one (--namespace OLD=NEW)", title, catalog.DropGrace)}
	}
	return err
}

// register makes the namespace known when its records are there.
func (b *Backups) register(ctx context.Context, in *backup.Incoming) error {
	if in.Target.Title == "" {
		return nil
	}
	n := entry(in)
	_, err := b.config.Catalog.Namespace(ctx, n.AccountID, n.ID)
	if err == nil {
		return nil
	}
	if !errors.Is(err, catalog.ErrNotFound) {
		return err
	}
	if err := b.config.Catalog.RestoreNamespace(ctx, n); err != nil {
		return restorable(err, n.Title)
	}
	if ack := catalog.Ack(in.Target.Ack); b.config.Acks != nil && ack != catalog.AckDefault {
		return b.config.Acks.Set(ctx, n.ID, ack)
	}
	return nil
}
