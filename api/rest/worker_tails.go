package rest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/websocket"
)

// TailHub is where those are who follow Workers. Its methods may be called at once.
type TailHub interface {
	TailSessions
	// Filters checks the filters of a tail that is to be opened and returns them as
	// they are to be kept. What it says of wrong ones is for who sent them.
	Filters(sent json.RawMessage, clientIP string) (json.RawMessage, error)
}

// TailSessions are the tails that somebody follows. Nobody waits for a follower.
type TailSessions interface {
	// Serve makes a request the WebSocket of a tail and returns when that has ended,
	// and the tail with it. It sends what was logged since a time first; zero: no time.
	// A *websocket.HandshakeError says that nothing was answered.
	Serve(w http.ResponseWriter, r *http.Request, t catalog.Tail, since time.Time) error
	// Deliver hands events to who follows a tail; false: nobody does, here.
	Deliver(t catalog.Tail, events []json.RawMessage) bool
	// End ends the session of a tail, if there is one.
	End(id string)
}

const (
	// tailAttach is how long a tail waits for its follower. Who follows it renews it.
	tailAttach = 3 * time.Minute
	// tailLife is how long a tail can be followed, as its follower is told.
	tailLife = 6 * time.Hour
	// tailEventsBytes is the greatest body of events that an edge delivers at once.
	tailEventsBytes = 1 << 20
	// tailIngest is the header with what permits an edge to deliver.
	tailIngest = "X-NK-Ingest"
)

// addTails adds the operations on tails. The follower of a tail shows the token in
// its address, and an edge that delivers the one that it found in the Worker's
// record: neither has credentials of the API.
func (e *endpoints) addTails() {
	e[routeWorkerTails] = endpoint{get: reads("list tails", (*Server).listTails), post: reads("open tail", (*Server).openTail)}
	e[routeWorkerTail] = endpoint{get: reads("get tail", (*Server).getTail), del: reads("close tail", (*Server).closeTail)}
	e[routeWorkerTailSocket] = endpoint{get: &operation{name: "follow tail", serve: (*Server).followTail}}
	e[routeWorkerTailEvents] = endpoint{post: &operation{name: "deliver to tail", serve: (*Server).deliverToTail}}
}

// shownTail is a tail as clients see it.
type shownTail struct {
	ID      string          `json:"id"`
	URL     string          `json:"url,omitempty"` // told once
	Created string          `json:"created_on"`
	Expires string          `json:"expires_at"`
	Filters json.RawMessage `json:"filters,omitempty"`
}

func newShownTail(t *catalog.Tail) shownTail {
	return shownTail{ID: t.ID, Created: stampOf(t.Created), Expires: t.Created.Add(tailLife).UTC().Format(time.RFC3339), Filters: t.Filters}
}

func tailFailure(err error) error {
	switch {
	case errors.Is(err, catalog.ErrTailNotFound):
		return refuse(http.StatusNotFound, codeNoDeployment, "The tail could not be found, or it has ended.")
	case errors.Is(err, catalog.ErrTooManyTails):
		return refuse(http.StatusBadRequest, codeTooMany, "%s", catalog.ErrTooManyTails)
	}
	return workerFailure(err)
}

// hub is where followers are, if there may be any.
func (s *Server) hub() (TailHub, error) {
	if s.workers.Tails == nil {
		return nil, &failure{status: http.StatusNotImplemented, code: codeInternal, bare: true, final: true, text: "Workers cannot be followed on this server."}
	}
	return s.workers.Tails, nil
}

// listTails serves GET …/scripts/{name}/tails.
func (s *Server) listTails(ctx context.Context, c *call) error {
	tails, err := s.catalog.Tails(ctx, c.route.account, c.workerName())
	if err != nil {
		return tailFailure(err)
	}
	list := make([]shownTail, len(tails))
	for i := range tails {
		list[i] = newShownTail(&tails[i])
	}
	return c.give(list, nil)
}

// getTail serves GET …/tails/{id}.
func (s *Server) getTail(ctx context.Context, c *call) error {
	t, err := s.catalog.Tail(ctx, c.route.account, c.workerName(), c.itemID())
	if err != nil {
		return tailFailure(err)
	}
	return c.give(newShownTail(&t), nil)
}

// openTail serves POST …/scripts/{name}/tails. wrangler calls the JSON that it sends
// plain text, and may send none.
func (s *Server) openTail(ctx context.Context, c *call) error {
	hub, err := s.hub()
	if err != nil {
		return err
	}
	var sent struct {
		Filters json.RawMessage `json:"filters"`
	}
	if c.body.length() != 0 {
		if err := c.readJSON(&sent); err != nil {
			return err
		}
	}
	if string(sent.Filters) == "null" {
		sent.Filters = nil
	}
	filters, err := hub.Filters(sent.Filters, clientAddress(c.r))
	if err != nil {
		return invalid("Invalid filters: %s.", err)
	}
	t, err := s.catalog.OpenTail(ctx, c.route.account, c.workerName(), filters, tailAttach)
	if err != nil {
		return tailFailure(err)
	}
	tail := newShownTail(&t)
	tail.URL = followAddress(c.r, &t)
	return c.give(tail, nil)
}

// closeTail serves DELETE …/tails/{id}. One that has ended by itself is no error: a
// follower that leaves ends it, and then deletes it.
func (s *Server) closeTail(ctx context.Context, c *call) error {
	err := s.catalog.CloseTail(ctx, c.route.account, c.workerName(), c.itemID())
	if err != nil && !errors.Is(err, catalog.ErrTailNotFound) {
		return tailFailure(err)
	}
	if hub := s.workers.Tails; hub != nil {
		hub.End(c.itemID())
	}
	return c.done()
}

// clientAddress is the address of who sent a request, or for whom it was sent.
// It decides nothing but what "self" means in the filters that are sent with it.
func clientAddress(r *http.Request) string {
	first, _, _ := strings.Cut(r.Header.Get("X-Forwarded-For"), ",")
	if ip, err := netip.ParseAddr(strings.TrimSpace(first)); err == nil {
		return ip.Unmap().String()
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.IPv6Unspecified().String() // a socket of this machine
	}
	return peer.Addr().Unmap().String()
}

// followAddress is where a tail is followed: the server that the client asked, by
// the name that it used, as it is told by those who pass requests on.
func followAddress(r *http.Request, t *catalog.Tail) string {
	u := url.URL{Scheme: "ws", Host: r.Host}
	if r.TLS != nil {
		u.Scheme = "wss"
	}
	if host, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Host"), ","); isHost(strings.TrimSpace(host)) {
		u.Host = strings.TrimSpace(host)
	}
	switch proto, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ","); strings.TrimSpace(proto) {
	case "https":
		u.Scheme = "wss"
	case "http":
		u.Scheme = "ws"
	}
	u.Path = basePath + "/accounts/" + t.AccountID + "/workers/scripts/" + t.Worker + "/tails/" + t.ID + "/socket"
	u.RawQuery = url.Values{"token": {t.Token}}.Encode()
	return u.String()
}

// isHost reports whether a text can be the host of a URL, with or without a port.
func isHost(text string) bool {
	u, err := url.Parse("//" + text)
	return err == nil && text != "" && u.Host == text && u.User == nil
}

// followTail serves GET …/tails/{id}/socket.
func (s *Server) followTail(ctx context.Context, c *call) error {
	hub, err := s.hub()
	if err != nil {
		return err
	}
	token, err := parameter(c.r.URL.RawQuery, "token")
	if err != nil {
		return err
	}
	since, err := sinceOf(c.r.URL.RawQuery)
	if err != nil {
		return err
	}
	t, err := s.tailFor(ctx, c, func(t catalog.Tail) bool { return t.Permits(token) })
	if err != nil {
		return err
	}
	err = hub.Serve(c.w, c.r, t, since)
	var refusal *websocket.HandshakeError
	if errors.As(err, &refusal) {
		if refusal.Status == http.StatusUpgradeRequired {
			c.w.Header().Set("Upgrade", "websocket")
		}
		return refuse(refusal.Status, codeInvalid, "%s", refusal.Text)
	}
	c.status = http.StatusSwitchingProtocols // the connection is no longer HTTP's
	return err
}

// tailFor is the tail in the path, if what was shown permits its use. Who may not
// use it does not learn whether it is there.
func (s *Server) tailFor(ctx context.Context, c *call, permits func(catalog.Tail) bool) (catalog.Tail, error) {
	if !isHexID(c.itemID()) { // anybody may ask: the database is not
		return catalog.Tail{}, errForbidden
	}
	t, err := s.catalog.Tail(ctx, c.route.account, c.workerName(), c.itemID())
	if isNotFound(err) || err == nil && !permits(t) {
		return catalog.Tail{}, errForbidden
	}
	return t, err
}

// sinceOf reads since when what was logged is wanted: Unix time in milliseconds.
func sinceOf(query string) (time.Time, error) {
	text, err := parameter(query, "since")
	if err != nil || text == "" {
		return time.Time{}, err
	}
	millis, err := strconv.ParseInt(text, 10, 64)
	if err != nil || millis <= 0 {
		return time.Time{}, invalid("Invalid since of %s. Please specify a time in milliseconds since 1970.", shown(text))
	}
	return time.UnixMilli(millis), nil
}

// deliverToTail serves POST …/tails/{id}/events: what an edge found to pass the
// filters of a tail.
func (s *Server) deliverToTail(ctx context.Context, c *call) error {
	hub, err := s.hub()
	if err != nil {
		return err
	}
	t, err := s.tailFor(ctx, c, func(t catalog.Tail) bool { return t.Accepts(c.r.Header.Get(tailIngest)) })
	if err != nil {
		return err
	}
	if err := c.body.limit(tailEventsBytes, controlBodyTooLong); err != nil {
		return err
	}
	text, err := c.readAll(&c.body, c.body.length(), tailEventsBytes)
	if err != nil {
		return bodyFailure(err)
	}
	var events []json.RawMessage
	if json.Unmarshal(text, &events) != nil {
		return errSyntax
	}
	return c.give(map[string]bool{"delivered": hub.Deliver(t, events)}, nil)
}
