// Package crash kills the real binary under load, again and again, and looks for
// acknowledged writes that are gone. It keeps nothing and has nothing to lose.
package crash

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

const (
	kills   = 8   // times that the server is killed
	clients = 16  // that write at once
	keys    = 300 // that they write to, each to its own part
	least   = 400 // acknowledged writes before a kill
)

// value is what a key has after its n-th write: what is read can be checked
// against nothing but itself. n is in its first eight bytes.
func value(key string, n uint64) []byte {
	rng := rand.New(rand.NewPCG(n, uint64(len(key))))
	size := 8 + rng.IntN(2000)
	if rng.IntN(25) == 0 {
		size = 128<<10 + rng.IntN(100_000)
	}
	v := binary.BigEndian.AppendUint64(make([]byte, 0, size), n)
	for len(v) < size {
		v = append(v, key[len(v)%len(key)]^byte(rng.Uint32()))
	}
	return v
}

// history is what a client knows of one key.
type history struct {
	sent    uint64 // the last write that was begun
	acked   uint64 // the last write that was acknowledged
	deleted map[uint64]bool
}

// world is the server and all that the clients know.
type world struct {
	*process.Server
	http      *http.Client
	namespace string
	known     []map[string]*history // by client; each client writes only its own
}

func (w *world) request(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, w.URL+"/client/v4/accounts/"+w.AccountID+"/storage/kv/namespaces"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+w.Token)
	resp, err := w.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// write makes the next write of a key: a put, a delete, or a bulk write of three.
func (w *world) write(ctx context.Context, client int, rng *rand.Rand) error {
	known := w.known[client]
	pick := func() (string, *history) {
		key := fmt.Sprintf("client %d/key %d", client, rng.IntN(keys/clients))
		h := known[key]
		if h == nil {
			h = &history{deleted: map[uint64]bool{}}
			known[key] = h
		}
		return key, h
	}
	key, h := pick()
	h.sent++
	n := h.sent
	path := "/" + w.namespace + "/values/" + url.PathEscape(key)
	switch rng.IntN(8) {
	case 0:
		h.deleted[n] = true
		return w.acknowledge(ctx, http.MethodDelete, path, nil, func() { h.acked = n })
	case 1:
		h.sent-- // counted below
		type pair struct {
			Key    string `json:"key"`
			Value  []byte `json:"value"`
			Base64 bool   `json:"base64"`
		}
		var pairs []pair
		acks := map[*history]uint64{}
		for range 3 {
			key, h := pick()
			h.sent++
			acks[h] = h.sent
			pairs = append(pairs, pair{key, value(key, h.sent), true})
		}
		body, err := json.Marshal(pairs)
		if err != nil {
			return err
		}
		return w.acknowledge(ctx, http.MethodPut, "/"+w.namespace+"/bulk", body, func() {
			for h, n := range acks {
				h.acked = n
			}
		})
	}
	return w.acknowledge(ctx, http.MethodPut, path, value(key, n), func() { h.acked = n })
}

func (w *world) acknowledge(ctx context.Context, method, path string, body []byte, acked func()) error {
	status, answer, err := w.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s: %d %s", method, status, answer)
	}
	acked()
	return nil
}

// load writes until the server is killed under it.
func (w *world) load(t *testing.T, seed uint64) (acked int) {
	t.Helper()
	ctx := context.Background()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards acked and killed
	killed := false
	for client := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(client)))
			for {
				err := w.write(ctx, client, rng)
				mu.Lock()
				if err != nil {
					if !killed {
						t.Errorf("seed %d: a write failed before the kill: %v", seed, err)
					}
					mu.Unlock()
					return
				}
				if acked++; acked == least+int(seed*37%400) {
					killed = true
					go w.Kill()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	w.Kill()
	return acked
}

// verify counts acknowledged writes that are gone and reports what nobody wrote.
func (w *world) verify(t *testing.T) (checked, lost int) {
	t.Helper()
	for _, known := range w.known {
		for key, h := range known {
			status, answer, err := w.request(context.Background(), http.MethodGet, "/"+w.namespace+"/values/"+url.PathEscape(key), nil)
			if err != nil {
				t.Fatal(err)
			}
			checked++
			n := uint64(0)
			switch {
			case status == http.StatusNotFound:
				for m := h.acked; m <= h.sent; m++ {
					if h.deleted[m] || m == 0 {
						n = max(n, m)
					}
				}
				if n < h.acked {
					lost++
				}
				continue
			case status != http.StatusOK || len(answer) < 8:
				t.Fatalf("get %q: %d, %d bytes", key, status, len(answer))
			}
			n = binary.BigEndian.Uint64(answer)
			if n > h.sent || !bytes.Equal(answer, value(key, n)) {
				t.Errorf("%q has a value that nobody wrote", key)
			}
			if n < h.acked {
				lost++
			}
			h.acked = max(h.acked, n)
		}
	}
	return checked, lost
}

func start(t *testing.T, binary, data string) *process.Server {
	t.Helper()
	s, err := process.Serve(context.Background(), binary, data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

func TestKillUnderLoad(t *testing.T) {
	binary, err := process.Build(context.Background(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	w := &world{Server: start(t, binary, data), http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}}
	for range clients {
		w.known = append(w.known, map[string]*history{})
	}
	status, answer, err := w.request(context.Background(), http.MethodPost, "", []byte(`{"title":"crash"}`))
	var created struct{ Result struct{ ID string } }
	if err := errors.Join(err, json.Unmarshal(answer, &created)); err != nil || status != http.StatusOK {
		t.Fatalf("create namespace: %d %s %v", status, answer, err)
	}
	w.namespace = created.Result.ID
	seed := rand.Uint64N(1000)
	acked, checked := 0, 0
	for round := range uint64(kills) {
		acked += w.load(t, seed+round)
		w.Server = start(t, binary, data)
		n, lost := w.verify(t)
		if checked += n; lost > 0 {
			t.Errorf("seed %d: %d of %d keys lost an acknowledged write", seed+round, lost, n)
		}
	}
	t.Logf("seed %d: %d kills, %d writes acknowledged, %d keys checked", seed, kills, acked, checked)

	// The check must be able to fail: history is rewritten so that a write that was
	// never made counts as acknowledged.
	for _, known := range w.known {
		for _, h := range known {
			h.acked, h.sent = h.sent+1, h.sent+1
		}
	}
	if _, lost := w.verify(t); lost == 0 {
		t.Error("the check does not notice writes that are not there")
	}
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
}
