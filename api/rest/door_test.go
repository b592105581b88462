package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

func TestHold(t *testing.T) {
	d := &door{size: 100}
	a, b := &hold{door: d}, &hold{door: d}
	check := func(want int64) {
		t.Helper()
		if got := d.held.Load(); got != want {
			t.Errorf("held %d, want %d", got, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(a.prepay(60))
	check(60)
	must(a.use(50))
	check(60) // paid already
	must(b.use(40))
	check(100)
	if err := b.use(1); !errors.Is(err, kv.ErrOverloaded) {
		t.Errorf("over the door: %v", err)
	}
	must(a.use(10))
	a.drop(30)
	check(100)
	must(a.use(30))
	var f *failure
	if err := a.use(41); !errors.As(err, &f) || f.status != 413 {
		t.Errorf("more than the whole door: %v", err)
	}
	b.close()
	b.close()
	check(60)
	if err := b.use(1); !errors.Is(err, kv.ErrOverloaded) {
		t.Errorf("use after the end: %v", err)
	}
	a.close()
	check(0)
}

// TestDoorFull: over the door requests are turned away, whichever way they come.
func TestDoorFull(t *testing.T) {
	const size = 1 << 20
	w := newWorld(t, func(cfg *Config) {
		cfg.BodyBytes = size
		cfg.Store = reserving{cfg.Store.(*memory.Store)}
	})
	value := strings.Repeat("v", size/2)
	w.put("values/big", value).ok()
	busy := &hold{door: w.server.door}
	if err := busy.use(size/2 + 1); err != nil {
		t.Fatal(err)
	}
	form, contentType := formBody(field{"value", value})
	for _, r := range []request{
		{method: "PUT", path: "values/a", body: value},
		{method: "PUT", path: "values/a", body: form, header: map[string]string{"Content-Type": contentType}},
		{method: "PUT", path: "bulk", body: `[{"key":"a","value":"` + value + `"}]`},
		{method: "GET", path: "values/big"},
		{method: "POST", path: "bulk/get", body: `{"keys":["big"]}`},
	} {
		for _, known := range []bool{true, false} {
			req := w.request(r)
			if !known {
				req.ContentLength = -1
			}
			rec := recordOf(w, req)
			if rec.Code != 503 || rec.Header().Get("Retry-After") != "1" || !strings.Contains(rec.Body.String(), `"code":7010`) {
				t.Errorf("%s %s, length known %v: %d %v %s", r.method, r.path, known, rec.Code, rec.Header(), rec.Body)
			}
			if held := w.server.door.held.Load(); held != size/2+1 {
				t.Errorf("%s %s: %d bytes are held", r.method, r.path, held)
			}
		}
	}
	// What a body may take is taken before it is read.
	w.doHolding(request{method: "PUT", path: "bulk", body: "[]" + strings.Repeat(" ", size/2)}, size/2+1).fails(503, 7010, "The server holds as much as it may at this moment. Please try again shortly.")
	w.doHolding(request{method: "PUT", path: "bulk", body: "[]"}, size/2+1).ok()
	busy.close()
	w.get("values/a").fails(404, 10009, "get: 'key not found'")
	w.put("values/a", value).ok()
	// What could never pass is refused for good.
	w.put("values/a", strings.Repeat("v", size)).ok()
	w.put("values/a", strings.Repeat("v", size+1)).fails(413, 10024,
		fmt.Sprintf("put: 'The request needs %d bytes at once, this server holds at most %d for all requests.'", size+1, size))
}

// reserving is a store that asks the door before it reads.
type reserving struct{ *memory.Store }

func (r reserving) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	rec, err := r.Store.Get(ctx, ref, maxAge)
	if err == nil && len(rec.Value) >= kv.ReserveBytes {
		if err := kv.Reserve(ctx, int64(len(rec.Value))); err != nil {
			return kv.Record{}, fmt.Errorf("get %q: %w", ref.Key, err)
		}
	}
	return rec, err
}

func (r reserving) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	recs := make([]kv.Record, len(refs))
	for i, ref := range refs {
		var err error
		if recs[i], err = r.Get(ctx, ref, maxAge); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

// TestBulkGetStops: more than the limit is not read at all.
func TestBulkGetStops(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Store = reserving{cfg.Store.(*memory.Store)} })
	var keys []string
	for i := range 10 {
		keys = append(keys, fmt.Sprintf(`"k%d"`, i))
		w.put(fmt.Sprintf("values/k%d", i), strings.Repeat("v", 5<<20)).ok()
	}
	w.post("bulk/get", `{"keys":[`+strings.Join(keys, ",")+`]}`).fails(413, 10024, "bulk get keys: 'Total size of request exceeds the limit of 25MB'")
	w.post("bulk/get", `{"keys":[`+strings.Join(keys[:5], ",")+`]}`).ok()
}

// cutBody ends early, in one of the ways in which connections do.
type cutBody struct {
	io.Reader
	err error
}

func (b cutBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

func (b cutBody) Close() error { return nil }

// TestCutBodies: a body that ends before its announced length stores nothing.
func TestCutBodies(t *testing.T) {
	w := newWorld(t)
	form, contentType := formBody(field{"value", "value"}, field{"metadata", "{}"})
	for _, r := range []request{
		{method: "PUT", path: "values/a", body: "the whole value"},
		{method: "PUT", path: "values/a", body: form, header: map[string]string{"Content-Type": contentType}},
		{method: "PUT", path: "bulk", body: `[{"key":"a","value":"v"}]`},
		{method: "POST", path: in("/storage/kv/namespaces"), body: `{"title":"cut"}`},
	} {
		for cut := range len(r.body) + 1 {
			for _, length := range []int64{int64(len(r.body)) + 1, -1} {
				req := w.request(r)
				req.ContentLength = length
				req.Body = cutBody{strings.NewReader(r.body[:cut]), io.ErrUnexpectedEOF}
				rec := recordOf(w, req)
				if rec.Code != 400 || !strings.Contains(rec.Body.String(), `"code":10012`) {
					t.Fatalf("%s %s cut after %d of %d bytes: %d %s", r.method, r.path, cut, length, rec.Code, rec.Body)
				}
			}
		}
	}
	if got := w.names(""); len(got) != 0 {
		t.Errorf("stored: %v", got)
	}
	if a := w.get(in("/storage/kv/namespaces")); a.ResultInfo.TotalCount != 1 {
		t.Errorf("a namespace was created: %s", a.body)
	}
}

// TestDoorComesBack runs thousands of good, bad and cut requests at once.
func TestDoorComesBack(t *testing.T) {
	w := newWorld(t, func(cfg *Config) {
		cfg.BodyBytes = 2 << 20
		cfg.Store = reserving{cfg.Store.(*memory.Store)}
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var statuses sync.Map
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(worker)))
			for range 500 {
				status := recordOf(w, w.randomRequest(rng)).Code
				if status >= 500 && status != 503 {
					t.Errorf("seed %d: status %d", seed, status)
				}
				statuses.Store(status, true)
			}
		})
	}
	all.Wait()
	if held := w.server.door.held.Load(); held != 0 {
		t.Errorf("seed %d: %d bytes are still held", seed, held)
	}
	for _, status := range []int{200, 400, 404, 408, 413} {
		if _, ok := statuses.Load(status); !ok {
			t.Errorf("seed %d: no request was answered with %d", seed, status)
		}
	}
}

func (w *world) randomRequest(rng *rand.Rand) *http.Request {
	value := strings.Repeat("v", rng.IntN(1<<uint(rng.IntN(20))))
	form, contentType := formBody(field{"metadata", []string{"{}", "{"}[rng.IntN(2)]}, field{"value", value})
	key := fmt.Sprintf("values/k%d", rng.IntN(20))
	r := []request{
		{method: "PUT", path: key, body: value}, {method: "PUT", path: key + "?expiration_ttl=1", body: value},
		{method: "PUT", path: key, body: form, header: map[string]string{"Content-Type": contentType}},
		{method: "GET", path: key}, {method: "GET", path: key}, {method: "DELETE", path: key}, {method: "GET", path: "keys"},
		{method: "PUT", path: "bulk", body: `[{"key":"k1","value":"` + value + `"},{"key":"k2","value":"dg","base64":true}]`},
		{method: "PUT", path: "bulk", body: `[{"key":"k1","value":"` + value + `"},{"key":""}]`},
		{method: "POST", path: "bulk/get", body: `{"keys":["k1","k2","k3"]}`},
		{method: "PUT", path: key, body: strings.Repeat("v", 2<<20+1)},
	}[rng.IntN(11)]
	req := w.request(r)
	if rng.IntN(3) == 0 {
		req.ContentLength = -1
	}
	if rng.IntN(4) == 0 && len(r.body) > 0 {
		req.Body = cutBody{strings.NewReader(r.body[:rng.IntN(len(r.body))]), []error{io.ErrUnexpectedEOF, errTimeout, errors.New("reset")}[rng.IntN(3)]}
	}
	return req
}

// TestChunkedMemory: a value of unknown length takes no more of the door than the
// documentation of Config says, a form neither.
func TestChunkedMemory(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.BodyBytes = 48 << 20 })
	value := strings.Repeat("v", 25<<20)
	form, contentType := formBody(field{"metadata", "{}"}, field{"value", value})
	for _, r := range []request{
		{method: "PUT", path: "values/a", body: value},
		{method: "PUT", path: "values/b", body: form, header: map[string]string{"Content-Type": contentType}},
	} {
		for _, length := range []int64{int64(len(r.body)), -1} {
			req := w.request(r)
			req.ContentLength = length
			if rec := recordOf(w, req); rec.Code != 200 {
				t.Errorf("%s, length %d: %d %s", r.path, length, rec.Code, rec.Body)
			}
		}
	}
}

// TestSmallPieces: many small values, or a long listing, are held too.
func TestSmallPieces(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.BodyBytes = 200 << 10 })
	w.rules.Limits.MetadataBytes = kv.MaxMetadataBytes
	ns := kv.NewNamespace(w.store, w.ns.ID, w.rules)
	for i := range 10 {
		err := ns.Put(t.Context(), fmt.Sprintf("k%d", i), make([]byte, 30<<10), kv.PutOptions{Metadata: []byte(`"` + strings.Repeat("m", 30<<10) + `"`)})
		if err != nil {
			t.Fatal(err)
		}
	}
	over := fmt.Sprintf("at once, this server holds at most %d for all requests.'", 200<<10)
	if a := w.get("keys"); a.status != 413 || !strings.Contains(a.body, over) {
		t.Errorf("a listing of 300 KiB: %d %.300s", a.status, a.body)
	}
	w.get("keys?limit=5").ok()
	if a := w.post("bulk/get", `{"keys":["k0","k1","k2","k3","k4","k5","k6","k7"]}`); a.status != 413 || !strings.Contains(a.body, over) {
		t.Errorf("a bulk get of 240 KiB: %d %.300s", a.status, a.body)
	}
	w.post("bulk/get", `{"keys":["k0","k1","k2","k3","k4"]}`).ok()
}
