package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/client"
)

// adminOf returns a client of a server whose administration is handler.
func adminOf(t *testing.T, handler http.HandlerFunc) *client.Client {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/before/nearkey/v1/", handler)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"success":false,"errors":[{"code":7003,"message":"Could not route"}]}`)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	c, err := client.New(client.Config{BaseURL: server.URL + "/before/client/v4", Token: "root"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAdmin(t *testing.T) {
	c := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Authorization") != "Bearer root" {
			t.Errorf("%s: %v", r.Header, err)
		}
		fmt.Fprintf(w, `{"success":true,"errors":[],"result":{"was":%q}}`, r.Method+" "+r.URL.Path+" "+r.URL.RawQuery+" "+string(body))
	})
	var got struct{ Was string }
	if err := c.Admin(t.Context(), "POST", "/shards/a/move?x=1", map[string]int{"slot": 7}, &got); err != nil {
		t.Fatal(err)
	}
	if want := "POST /before/nearkey/v1/shards/a/move x=1 {\"slot\":7}\n"; got.Was != want {
		t.Errorf("the server was asked for %q, want %q", got.Was, want)
	}
	if err := c.Admin(t.Context(), "GET", "/repair", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestAdminOfAnotherServer(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	for _, url := range []string{other.URL, strings.TrimSuffix(adminOf(t, http.NotFound).BaseURL(), "/before/client/v4")} {
		c, err := client.New(client.Config{BaseURL: url, Token: "root"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Admin(t.Context(), "GET", "/repair", nil, nil); !errors.Is(err, client.ErrNotNearkey) {
			t.Errorf("%s: %v", url, err)
		}
	}
	c := adminOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"success":false,"errors":[{"code":20404,"message":"there is no provider c"}]}`)
	})
	var answer *client.Error
	if err := c.Admin(t.Context(), "GET", "/providers/c", nil, nil); errors.Is(err, client.ErrNotNearkey) || !errors.As(err, &answer) {
		t.Errorf("what nearkey does not find: %v", err)
	}
}

func TestAdminWork(t *testing.T) {
	for _, c := range []struct {
		lines, want string
		steps       int
	}{
		{`{"progress":1}` + "\n" + `{"progress":2}` + "\n" + `{"result":7}` + "\n", "7", 2},
		{`{"progress":1}` + "\n" + `{"error":{"code":20500,"message":"it went wrong"}}`, "it went wrong", 1},
		{`{"progress":1}` + "\n" + `{"progress":`, "not what was expected", 1},
		{`{"progress":1}` + "\n", "ended early", 1},
		{`{"result":"x"}`, "not what was expected", 0},
		{`{"progress":"` + strings.Repeat("x", 1<<20) + `"}`, "ended early", 0},
	} {
		cl := adminOf(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.lines) })
		steps, result := 0, 0
		err := cl.AdminWork(t.Context(), "POST", "/verify", nil, func(json.RawMessage) { steps++ }, &result)
		if got := fmt.Sprint(result, " ", err); steps != c.steps || !strings.Contains(got, c.want) || (err == nil) != (c.want == "7") {
			t.Errorf("%.80q: %s after %d steps", c.lines, got, steps)
		}
	}
}

// TestAdminWorkEndsWithTheContext: who gives up ends the work, too.
func TestAdminWorkEndsWithTheContext(t *testing.T) {
	ended := make(chan struct{})
	c := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"progress":1}`+"\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	})
	ctx, cancel := context.WithCancel(t.Context())
	err := c.AdminWork(ctx, "POST", "/verify", nil, func(json.RawMessage) { cancel() }, nil)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the work goes on")
	}
}
