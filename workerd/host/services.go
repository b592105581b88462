package host

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/nearkey/nearkey/workerd"
)

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// named is whose a version in the runtime is.
type named struct {
	id
	site *site     // nil: it has no static assets
	gone time.Time // when it was found to be no longer active; its processes may still end
}

// named tells whose a version is.
func (h *Host) named(version string) (of id, ok bool) {
	value, ok := h.names.Load(version)
	if !ok {
		return id{}, false
	}
	return value.(named).id, true
}

// owner tells whose process a token is of.
func (h *Host) owner(token string) (of id, version string, ok bool) {
	caller, ok := h.config.Runtime.Identify(token, "")
	if !ok {
		return id{}, "", false
	}
	of, ok = h.named(caller.Name)
	return of, caller.Name, ok
}

// Owner tells whose process a token is of, for services that keep what is theirs
// apart from what is others'.
func (h *Host) Owner(token string) (accountID, worker, version string, ok bool) {
	of, version, ok := h.owner(token)
	return of.account, of.name, version, ok
}

// Services answers what Workers send through service bindings: with the Worker of
// that name in the same account. It is for the socket workerd.Options.Services.
func (h *Host) Services() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		of, version, ok := h.owner(r.Header.Get(workerd.HeaderToken))
		name := r.Header.Get(workerd.HeaderService)
		if !ok || name == "" {
			plain(w, http.StatusForbidden, "a service binding is for Workers")
			return
		}
		if r.Header.Get(workerd.HeaderProto) == "https" {
			r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}
		}
		if client := r.Header.Get("CF-Connecting-IP"); client != "" {
			r.RemoteAddr = client // who asked the first Worker asks this one
		}
		if name == assetsService {
			h.serveBinding(w, r, version)
			return
		}
		h.run(w, r, target{worker: id{of.account, name}, entrypoint: r.Header.Get(workerd.HeaderEntrypoint)})
	})
}

// MaxEventBytes is the greatest body of events that a process delivers at once.
const MaxEventBytes = 4 << 20

// Events takes the events of Workers that are followed. It is for the socket
// workerd.Options.Events.
func (h *Host) Events() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		of, version, ok := h.owner(r.Header.Get(workerd.HeaderToken))
		if !ok {
			plain(w, http.StatusForbidden, "events are for Workers to tell")
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxEventBytes))
		var tooLong *http.MaxBytesError
		if errors.As(err, &tooLong) {
			plain(w, http.StatusRequestEntityTooLarge, "too many events at once")
			return
		}
		var events []map[string]json.RawMessage
		if err != nil || json.Unmarshal(body, &events) != nil {
			plain(w, http.StatusBadRequest, "events are a JSON array")
			return
		}
		h.deliver(of, version, events)
		w.WriteHeader(http.StatusNoContent)
	})
}

// deliver passes events on to those who follow the Worker.
func (h *Host) deliver(of id, version string, events []map[string]json.RawMessage) {
	if h.config.Deliver == nil {
		return
	}
	h.mu.Lock()
	wk := h.workers[of]
	h.mu.Unlock()
	if wk == nil {
		return
	}
	a := wk.active.Load()
	if a == nil {
		return
	}
	tails := h.tails(a.record)
	if len(tails) == 0 {
		return
	}
	for _, event := range events {
		event["scriptName"] = quoted(of.name)
		event["scriptVersion"] = json.RawMessage(`{"id":` + string(quoted(version)) + `}`)
		text, err := json.Marshal(event)
		if err != nil {
			h.config.Logger.Warn("write an event of a Worker", "worker", of.name, "error", err)
			continue
		}
		h.config.Deliver(Delivery{AccountID: of.account, Worker: of.name, Version: version, Tails: tails, Event: text})
	}
}

func quoted(text string) json.RawMessage {
	b, err := json.Marshal(text)
	if err != nil {
		panic("host: writing a string: " + err.Error()) // a string can be written
	}
	return b
}

// Output is workerd.Options.Output: it tells Config.Log whose line it is.
func (h *Host) Output(name, _ string, line []byte) {
	if h.config.Log == nil {
		return
	}
	if of, ok := h.named(name); ok {
		h.config.Log(of.account, of.name, name, line)
	}
}

// Counts are what a Worker did at this place, in all its versions.
type Counts struct {
	AccountID, Worker string
	workerd.Counts
}

// Counts returns what the Workers did that were asked for within ForgetAfter. That
// of one Worker only grows, until it is forgotten.
func (h *Host) Counts() []Counts {
	all := []Counts{}
	for _, wk := range h.loaded() {
		if wk.active.Load() != nil {
			all = append(all, Counts{wk.id.account, wk.id.name, wk.tally.Counts()})
		}
	}
	return all
}
