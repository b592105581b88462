package examples_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// order is an order of the shop.
type order struct {
	ID      string `json:"id"`
	Updated string `json:"updated"`
	Item    string `json:"item"`
}

// systems are the shop and the warehouse.
type systems struct {
	mu     sync.Mutex // guards the fields below
	orders []order    // of the shop, the oldest change first
	sent   []string   // to the warehouse: the idempotency keys, in order
	down   string     // the order that the warehouse does not take
	broken bool       // the shop is
}

func (s *systems) shop(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken || r.URL.Path != "/orders" || r.FormValue("limit") != "200" {
		http.Error(w, "no", http.StatusServiceUnavailable)
		return
	}
	changed := []order{}
	for _, o := range s.orders {
		if o.Updated >= r.FormValue("since") {
			changed = append(changed, o)
		}
	}
	_ = json.NewEncoder(w).Encode(changed[:min(len(changed), 200)])
}

func (s *systems) warehouse(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var o order
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil || r.Method != http.MethodPut || r.URL.Path != "/orders/"+o.ID {
		http.Error(w, "want an order", http.StatusBadRequest)
		return
	}
	s.sent = append(s.sent, r.Header.Get("Idempotency-Key"))
	switch {
	case o.ID == s.down:
		http.Error(w, "not now", http.StatusServiceUnavailable)
	case o.Item == "known":
		http.Error(w, "it is here", http.StatusConflict)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// set changes the systems and forgets what was sent.
func (s *systems) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.sent = nil
}

// second is the time of a change.
func second(n int) string { return fmt.Sprintf("2026-01-01T00:%02d:%02dZ", n/60, n%60) }

// TestOrders: each change of an order is sent once, and only what is newer.
func TestOrders(t *testing.T) {
	t.Parallel()
	var s systems
	playOrigin(t, "shop.example", http.HandlerFunc(s.shop))
	playOrigin(t, "warehouse.example", http.HandlerFunc(s.warehouse))
	p := deploy(t, "orders")
	page := worker("orders")
	page.get(t, "/").want(t, http.StatusNotFound, "null")

	// run fires the trigger and complains unless these were sent.
	run := func(what string, fails bool, sent ...string) {
		t.Helper()
		_, err := p.try(t.Context(), shared.binary, "cron", "run", "orders")
		if (err != nil) != fails {
			t.Fatalf("%s: the run ended with %v", what, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.Equal(s.sent, sent) {
			t.Fatalf("%s: the warehouse got %q, want %q", what, s.sent, sent)
		}
		s.sent = nil
	}
	run("no orders", false)
	s.set(func() { s.orders = []order{{"a", second(1), "tea"}, {"b", second(2), "cake"}} })
	run("two orders", false, "a@"+second(1), "b@"+second(2))
	run("nothing new", false)
	s.set(func() {
		s.orders = []order{{"b", second(2), "cake"}, {"c", second(2), "known"}, {"a", second(3), "coffee"}}
	})
	run("one changed, and one came in the second of the last", false, "c@"+second(2), "a@"+second(3))

	s.set(func() { s.down, s.orders = "d", []order{{"d", second(5), "milk"}, {"e", second(6), "bread"}} })
	run("the warehouse does not take one", true, "d@"+second(5), "e@"+second(6))
	s.set(func() { s.down, s.broken = "", true })
	run("the shop is broken", true)
	s.set(func() { s.broken, s.orders = false, []order{{"d", second(5), "milk"}, {"e", second(5), "old bread"}} })
	run("again, and an older change after a newer one", false, "d@"+second(5))
	run("and not again", false)
	page.get(t, "/").want(t, http.StatusOK, `"sent":0,`)

	many := make([]order, 250) // more than one run carries
	want := make([]string, len(many))
	for i := range many {
		many[i] = order{fmt.Sprintf("many-%d", i), second(10 + i), "pins"}
		want[i] = many[i].ID + "@" + many[i].Updated
	}
	s.set(func() { s.orders = many })
	run("as many as a run carries", false, want[:200]...)
	run("the rest", false, want[200:]...)
	if keys := namespaceOf(t, "orders-state").keys(t, "sent/many-"); len(keys) != len(many) || keys[0].Expiration == 0 {
		t.Errorf("%d orders are noted, want %d that expire", len(keys), len(many))
	}
	if history := p.nearkey(t, "cron", "history", "orders"); !strings.Contains(history, "*/5 * * * *") {
		t.Errorf("the history does not name the trigger:\n%s", history)
	}
}

// TestOrdersSystems: the systems that the test plays keep their own rules.
func TestOrdersSystems(t *testing.T) {
	s := systems{orders: []order{{"a", second(1), "tea"}, {"b", second(2), "cake"}}}
	for query, want := range map[string]int{
		"since=" + second(2) + "&limit=200": http.StatusOK,
		"since=" + second(2) + "&limit=100": http.StatusServiceUnavailable,
	} {
		w := httptest.NewRecorder()
		s.shop(w, httptest.NewRequest(http.MethodGet, "/orders?"+query, nil))
		if w.Code != want || want == http.StatusOK && !strings.Contains(w.Body.String(), "cake") {
			t.Errorf("%s: status %d: %s", query, w.Code, w.Body)
		}
	}
}
