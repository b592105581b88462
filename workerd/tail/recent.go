package tail

import (
	"container/list"
	"encoding/json"
	"time"
)

// The bounds of kept lines.
const (
	RecentAge         = time.Hour
	RecentWorkerBytes = 256 << 10 // of a Worker
	RecentBytes       = 32 << 20  // of all
	MaxLineBytes      = 16 << 10  // of a line; a longer one is cut
	lineOverhead      = 96        // of memory
)

// logged is a line that was kept.
type logged struct {
	at      time.Time
	version string
	entry   json.RawMessage // as in the logs of an event
}

func (l logged) size() int { return len(l.entry) + len(l.version) + lineOverhead }

// recent keeps the last lines of Workers: of the Worker that was silent for
// longest the lines go first.
type recent struct {
	lines map[worker]*list.Element // of *history
	order *list.List               // the Worker that logged last is in front
	bytes int
}

// history are the lines of one Worker, the oldest first.
type history struct {
	worker worker
	lines  []logged
	bytes  int
}

func newRecent() recent { return recent{lines: map[worker]*list.Element{}, order: list.New()} }

func (r *recent) add(w worker, l logged) {
	element := r.lines[w]
	if element == nil {
		element = r.order.PushFront(&history{worker: w})
		r.lines[w] = element
	}
	r.order.MoveToFront(element)
	h := element.Value.(*history)
	h.lines = append(h.lines, l)
	h.bytes, r.bytes = h.bytes+l.size(), r.bytes+l.size()
	for h.bytes > RecentWorkerBytes {
		r.drop(h, 1)
	}
	for r.bytes > RecentBytes {
		r.forget(r.order.Back())
	}
}

// drop forgets the oldest lines of a Worker.
func (r *recent) drop(h *history, n int) {
	for _, l := range h.lines[:n] {
		h.bytes, r.bytes = h.bytes-l.size(), r.bytes-l.size()
	}
	clear(h.lines[:n])
	h.lines = h.lines[n:]
}

func (r *recent) forget(element *list.Element) {
	h := r.order.Remove(element).(*history)
	delete(r.lines, h.worker)
	r.bytes -= h.bytes
}

// expire forgets what is too old.
func (r *recent) expire(now time.Time) {
	for element := r.order.Front(); element != nil; {
		next := element.Next()
		h := element.Value.(*history)
		n := 0
		for n < len(h.lines) && now.Sub(h.lines[n].at) > RecentAge {
			n++
		}
		if r.drop(h, n); len(h.lines) == 0 {
			r.forget(element)
		}
		element = next
	}
}

// since returns the lines of a Worker from a time on.
func (r *recent) since(w worker, from time.Time) []logged {
	element := r.lines[w]
	if element == nil {
		return nil
	}
	var found []logged
	for _, l := range element.Value.(*history).lines {
		if !l.at.Before(from) {
			found = append(found, l)
		}
	}
	return found
}

// replay has a follower get the lines that were kept since a time. Of its filters
// only those count that can be told of a line.
func (h *Hub) replay(s *session, since time.Time) {
	if since.IsZero() {
		return
	}
	var lines filters
	for _, f := range s.filters {
		if f.Query != nil || f.Version != nil {
			lines = append(lines, f)
		}
	}
	h.mu.Lock()
	found := h.recent.since(worker{s.tail.AccountID, s.tail.Worker}, later(since, h.now().Add(-RecentAge)))
	h.mu.Unlock()
	for _, l := range found {
		if event := logEvent(s.tail.Worker, l); lines.match(event) {
			s.push(event)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// logEntry makes of a line of workerd what the logs of an event have, and tells
// when it was logged.
func logEntry(line []byte, now time.Time) (time.Time, json.RawMessage) {
	var l struct {
		Timestamp float64         `json:"timestamp"`
		Level     string          `json:"level"`
		Message   json.RawMessage `json:"message"`
	}
	type entry struct {
		Message   []any  `json:"message"`
		Level     string `json:"level"`
		Timestamp int64  `json:"timestamp"`
	}
	if json.Unmarshal(line, &l) != nil || len(l.Message) == 0 || len(line) > MaxLineBytes {
		text := string(line[:min(len(line), MaxLineBytes)])
		return now, encode(entry{[]any{text}, "log", now.UnixMilli()})
	}
	if l.Level == "" {
		l.Level = "log"
	}
	at := time.UnixMilli(int64(l.Timestamp))
	if l.Timestamp <= 0 || at.After(now) || now.Sub(at) > time.Minute {
		at = now // a clock that a Worker cannot have moved
	}
	return at, encode(entry{[]any{l.Message}, l.Level, at.UnixMilli()})
}
