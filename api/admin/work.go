package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// errStopping is why work ends when the server does.
var errStopping = fmt.Errorf("%w: the server is stopping", kv.ErrUnavailable)

// Work answers a request in lines while do works. do tells how far it has come with
// progress, as often as it likes: the caller is told at most every half second. An
// error before anything was told is answered as any other.
func (h *Handler) Work(w http.ResponseWriter, r *http.Request, do func(ctx context.Context, progress func(any)) (any, error)) error {
	select {
	case h.work <- struct{}{}:
		defer func() { <-h.work }()
	default:
		return &Error{http.StatusTooManyRequests, CodeOverloaded, fmt.Sprintf("%d pieces of work are under way; try again when one has ended", MaxWork)}
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // the request is read; its caller may wait for long
	out := &lines{w: w, gone: func(err error) { cancel(fmt.Errorf("%w: the caller is gone: %w", context.Canceled, err)) }}
	result, err := out.during(h.ending, func() { cancel(errStopping) }, func() (any, error) { return do(ctx, out.note) })
	if err != nil && ctx.Err() != nil && errors.Is(context.Cause(ctx), errStopping) {
		err = errStopping
	}
	switch {
	case err != nil && !out.begun:
		return err
	case err != nil:
		e := errorOf(err)
		h.config.Logger.WarnContext(r.Context(), "admin: a piece of work went wrong", "method", r.Method, "path", r.URL.Path, "error", err)
		out.write(map[string]any{"error": note{e.Code, e.Text}})
	default:
		out.write(map[string]any{"result": result})
	}
	return nil
}

// lines is an answer in lines.
type lines struct {
	w     http.ResponseWriter
	gone  func(error) // is told when the caller does not take what is written
	begun bool

	mu     sync.Mutex // guards latest
	latest any        // that was not told yet
}

// note remembers how far the work has come, until it is told.
func (l *lines) note(progress any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latest = progress
}

// during tells how far the work of do has come while it goes on.
func (l *lines) during(ending <-chan struct{}, stop func(), do func() (any, error)) (any, error) {
	var told sync.WaitGroup
	defer told.Wait() // also when do panics: nobody writes after the handler's end
	done := make(chan struct{})
	defer close(done)
	told.Go(func() { l.tell(done, ending, stop) })
	return do()
}

// tell tells how far the work has come until done is closed. When ending is, it
// calls stop.
func (l *lines) tell(done, ending <-chan struct{}, stop func()) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-ending:
			stop()
			ending = nil
		case <-tick.C:
			l.mu.Lock()
			latest := l.latest
			l.latest = nil
			l.mu.Unlock()
			if latest == nil { // so that a caller who is gone is noticed
				latest = struct{}{}
			}
			l.write(map[string]any{"progress": latest})
		}
	}
}

func (l *lines) write(v any) {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.w.WriteHeader(http.StatusOK)
	}
	control := http.NewResponseController(l.w)
	_ = control.SetWriteDeadline(time.Now().Add(writeWithin)) // as in answer
	_, err := l.w.Write(line(v))
	if err == nil {
		err = control.Flush()
	}
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		l.gone(err)
	}
}
