package rest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

func TestBulkWrite(t *testing.T) {
	w := newWorld(t)
	expires := w.rules.Now().Unix() + 1000
	body := fmt.Sprintf(` [
		{"key":"a","value":"text <&> \u00e9 \ud83d\ude00 \n","unknown":{"x":[1,2,{"y":null}]}},
		{"value":"AAH/","base64":true,"key":"b"},
		{"base64":true,"key":"unpadded","value":"AAH_"},
		{"key":"c","value":"","metadata":{"a": [1, "x"]},"expiration":%d},
		{"key":"d","value":"x","expiration":"%d"},
		{"key":"e","value":"x","expiration":%d.0,"expiration_ttl":6e2,"metadata":null,"base64":null},
		{"key":"%%2F decoded not","value":"x","metadata":"s"},
		{"key":"twice","value":"first","metadata":1},
		{"key":"twice","value":"second"}
	] `, expires, expires, expires)
	body = strings.ReplaceAll(body, "AAH_", "AA")
	a := w.put("bulk", body)
	a.is(`{"successful_key_count":9,"unsuccessful_keys":[]}`)
	for path, want := range map[string]string{"a": "text <&> é 😀 \n", "b": "\x00\x01\xff", "unpadded": "\x00", "c": "", "d": "x", "e": "x", "%252F%20decoded%20not": "x", "twice": "second"} {
		if got := w.value(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	w.get("metadata/c").is(`{"a":[1,"x"]}`)
	w.get("metadata/e").is(`null`)
	w.get("metadata/twice").is(`null`)
	for key, want := range map[string]int64{"a": 0, "c": expires, "d": expires} {
		if rec, _ := w.store.Get(t.Context(), ref(w, key), 0); rec.Expiration != want {
			t.Errorf("%s expires at %d, want %d", key, rec.Expiration, want)
		}
	}
	if rec, _ := w.store.Get(t.Context(), ref(w, "e"), 0); rec.Expiration < w.rules.Now().Unix()+590 || rec.Expiration > expires-300 {
		t.Errorf("the TTL did not win: expires at %d", rec.Expiration)
	}
	w.put("bulk", `[]`).is(`{"successful_key_count":0,"unsuccessful_keys":[]}`)
}

func TestBadBulkWrite(t *testing.T) {
	w := newWorld(t)
	notJSON := "bulk put keys: 'The request body is not valid JSON'"
	good := `{"key":"good","value":"v"},`
	long := strings.Repeat("k", 513)
	for _, tt := range []struct {
		body    string
		status  int
		code    int
		message string
	}{
		{``, 400, 10012, notJSON}, {`{}`, 400, 10012, notJSON}, {`null`, 400, 10012, notJSON}, {`"x"`, 400, 10012, notJSON},
		{`[` + good + `]`, 400, 10012, notJSON}, {`[` + good[:len(good)-1], 400, 10012, notJSON},
		{`[` + good + `1]`, 400, 10012, notJSON}, {`[` + good + `{"key":"a","value":"b"}] x`, 400, 10012, notJSON},
		{`[` + good + `{"key":"a" "value":"b"}]`, 400, 10012, notJSON}, {`[` + good + `{"key":"a","value":"b","x":tru}]`, 400, 10012, notJSON},
		{`[` + good + `{"key":"a","value":"\x"}]`, 400, 10012, notJSON}, {"[" + good + "{\"key\":\"a\",\"value\":\"\xff\"}]", 400, 10012, notJSON},
		{"[" + good + "{\"key\":\"a\",\"value\":\"\n\"}]", 400, 10012, notJSON},
		{`[` + good + `{"key":"a","value":"b","x":01}]`, 400, 10012, notJSON},
		{`[` + good + `{"key":"a","value":"b","x":` + strings.Repeat("[", maxDepth) + `]}]`, 400, 10012, "bulk put keys: 'The request body nests arrays and objects too deeply'"},
		{`[` + good + `{"value":"b"}]`, 400, 10012, "bulk put keys: 'An item of the array has no 'key''"},
		{`[` + good + `{"key":"a"}]`, 400, 10012, "bulk put keys: 'An item of the array has no 'value''"},
		{`[` + good + `{"key":1,"value":"b"}]`, 400, 10012, "bulk put keys: 'A key must be a string'"},
		{`[` + good + `{"key":"a","value":{"a":1}}]`, 400, 10012, "bulk put keys: 'A value must be a string'"},
		{`[` + good + `{"key":"a","value":"b","base64":"yes"}]`, 400, 10012, "bulk put keys: 'A field that must be true or false is neither'"},
		{`[` + good + `{"key":"a","value":"b","expiration":true}]`, 400, 10012, "bulk put keys: 'An expiration must be a number'"},
		{`[` + good + `{"key":"a","value":"!","base64":true}]`, 400, 10012, "bulk put keys: 'A value with 'base64' is not valid base64'"},
		{`[` + good + `{"key":"a","value":"AAA=A","base64":true}]`, 400, 10012, "bulk put keys: 'A value with 'base64' is not valid base64'"},
		{`[` + good + `{"key":"","value":"b"}]`, 400, 10012, "bulk put keys: 'Key names must not be empty'"},
		{`[` + good + `{"key":"..","value":"b"}]`, 400, 10012, `bulk put keys: 'Illegal key name "..". Please use a different name.'`},
		{`[` + good + `{"key":"` + long + `","value":"b"}]`, 400, 10022, "bulk put keys: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'"},
		{`[` + good + `{"key":"a","value":"b","expiration_ttl":59}]`, 400, 10034, "bulk put keys: 'Invalid expiration_ttl of 59. Expiration TTL must be at least 60.'"},
		{`[` + good + `{"key":"a","value":"b","expiration_ttl":0}]`, 400, 10034, "bulk put keys: 'Invalid expiration_ttl of 0. Please specify integer greater than 0.'"},
		{`[` + good + `{"key":"a","value":"b","expiration":1}]`, 400, 10033, "bulk put keys: 'Invalid expiration of 1. Please specify integer greater than the current number of seconds since the UNIX epoch.'"},
		{`[` + good + `{"key":"a","value":"b","metadata":"` + strings.Repeat("m", 1023) + `"}]`, 413, 10030, "bulk put keys: 'Metadata length of 1025 exceeds limit of 1024.'"},
		{`[` + good + `{"key":"a","value":"b","metadata":"` + strings.Repeat("m", metadataTextBytes) + `"}]`, 413, 10030, "bulk put keys: 'Metadata is longer than any limit allows.'"},
		{`[` + good + `{"key":"a","value":"` + strings.Repeat("v", 25<<20+1) + `"}]`, 413, 10024, "bulk put keys: 'Value length of 26214401 exceeds limit of 26214400.'"},
	} {
		a := w.put("bulk", tt.body)
		if a.status != tt.status || a.Errors[0].Code != tt.code || a.Errors[0].Message != tt.message {
			t.Errorf("%.200s\nanswer %d %s\nwant %d %d %s", tt.body, a.status, a.body, tt.status, tt.code, tt.message)
		}
		if got := len(w.names("")); got != 0 {
			t.Fatalf("%.200s: %d keys were stored", tt.body, got)
		}
	}
}

func TestBulkLimits(t *testing.T) {
	w := newWorld(t)
	items := func(n int, item func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(string(",["[btoi(i == 0)]) + item(i))
		}
		return b.String() + "]"
	}
	pair := func(i int) string { return fmt.Sprintf(`{"key":"k%d","value":"v"}`, i) }
	key := func(i int) string { return fmt.Sprintf(`"k%d"`, i) }
	w.put("bulk", items(10_001, pair)).fails(400, 10022, "bulk put keys: 'You can write a maximum of 10000 pairs'")
	w.put("bulk", items(10_000, pair)).is(`{"successful_key_count":10000,"unsuccessful_keys":[]}`)
	w.delete("bulk", items(10_001, key)).fails(400, 10022, "bulk remove keys: 'You can remove a maximum of 10000 keys'")
	w.post("bulk/get", `{"keys":`+items(101, key)+`}`).fails(400, 10029, "bulk get keys: 'You can request a maximum of 100 keys'")
	w.post("bulk/get", `{"keys":`+items(100, key)+`}`).ok()
	w.delete("bulk", items(10_000, key)).is(`{"successful_key_count":10000,"unsuccessful_keys":[]}`)
	if got := len(w.names("")); got != 0 {
		t.Errorf("%d keys are left", got)
	}
	w.put("bulk", `[{"key":"most","value":"`+strings.Repeat("v", 25<<20)+`"}]`).ok()
	w.put("bulk", `[{"key":"base64","base64":true,"value":"`+base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 25<<20))+`"}]`).ok()
	if got := len(w.value("base64")); got != 25<<20 {
		t.Errorf("%d bytes", got)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestBulkBody: 100 MB of the greatest values pass the default door, one byte more
// does not.
func TestBulkBody(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some hundred megabytes")
	}
	w := newWorld(t)
	value := strings.Repeat("v", 25<<20)
	var b strings.Builder
	b.WriteString(`[{"key":"a","value":"` + value + `"},{"key":"b","value":"` + value + `"},{"key":"c","value":"` + value + `"},`)
	for i := range 5000 {
		fmt.Fprintf(&b, `{"key":"small%d","value":"%s"},`, i, strings.Repeat("s", 4000))
	}
	b.WriteString(`{"key":"last","value":"`)
	b.WriteString(strings.Repeat("l", bulkBodyBytes-b.Len()-len(`"}]`)) + `"}]`)
	body := b.String()
	for _, known := range []bool{true, false} {
		req := w.request(request{method: "PUT", path: "bulk", body: body})
		if !known {
			req.ContentLength = -1
		}
		if rec := recordOf(w, req); rec.Code != 200 {
			t.Errorf("length known %v: %d %s", known, rec.Code, rec.Body)
		}
		req = w.request(request{method: "PUT", path: "bulk", body: body + " "})
		if !known {
			req.ContentLength = -1
		}
		over := fmt.Sprintf("Request body of %d bytes exceeds limit of %d.", bulkBodyBytes+1, bulkBodyBytes)
		if rec := recordOf(w, req); rec.Code != 413 || !strings.Contains(rec.Body.String(), over) {
			t.Errorf("length known %v: %d %s", known, rec.Code, rec.Body)
		}
	}
	if held := w.server.door.held.Load(); held != 0 {
		t.Errorf("%d bytes are still held", held)
	}
}

func TestBulkDelete(t *testing.T) {
	w := newWorld(t)
	for _, spelling := range []request{
		{method: "DELETE", path: "bulk", header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}},
		{method: "POST", path: "bulk/delete"},
	} {
		for _, key := range []string{"a", "b", "c%2Fd"} {
			w.put("values/"+key, "v").ok()
		}
		spelling.body = `["a", "c/d", "never was", "a"]`
		w.do(spelling).is(`{"successful_key_count":4,"unsuccessful_keys":[]}`)
		if got := w.names(""); len(got) != 1 || got[0] != "b" {
			t.Errorf("left: %v", got)
		}
		for body, message := range map[string]string{
			``: "The request body is not valid JSON", `{"keys":["b"]}`: "The request body is not valid JSON",
			`["b",1]`: "A key must be a string", `["b"`: "The request body is not valid JSON", `["b",""]`: "Key names must not be empty",
		} {
			spelling.body = body
			w.do(spelling).fails(400, 10012, "bulk remove keys: '"+message+"'")
		}
		if got := w.value("b"); got != "v" {
			t.Errorf("b was removed: %q", got)
		}
		spelling.body = `[]`
		w.do(spelling).is(`{"successful_key_count":0,"unsuccessful_keys":[]}`)
	}
}

func TestBulkGet(t *testing.T) {
	w := newWorld(t)
	expires := w.rules.Now().Unix() + 1000
	w.put("values/t", "tex\"t\n<é>").ok()
	w.putForm(fmt.Sprintf("values/j?expiration=%d", expires), field{"value", `{"a": [1]}`}, field{"metadata", `{"m":1}`}).ok()
	w.put("values/bin", "\xff").ok()
	w.put("values/empty", "").ok()
	for _, tt := range []struct{ body, want string }{
		{`{"keys":["t","none","j","t"]}`, `{"values":{"t":"tex\"t\n<é>","none":null,"j":"{\"a\": [1]}"}}`},
		{`{"keys":["empty"],"type":"text","other":[{}]}`, `{"values":{"empty":""}}`},
		{`{"type":"json","keys":["j","none"]}`, `{"values":{"j":{"a": [1]},"none":null}}`},
		{`{"keys":["t","j","none"],"withMetadata":true}`, fmt.Sprintf(`{"values":{"t":{"value":"tex\"t\n<é>","metadata":null},"j":{"value":"{\"a\": [1]}","metadata":{"m":1},"expiration":%d},"none":null}}`, expires)},
		{`{"withMetadata":true,"keys":["j"],"type":"json"}`, fmt.Sprintf(`{"values":{"j":{"value":{"a": [1]},"metadata":{"m":1},"expiration":%d}}}`, expires)},
	} {
		w.post("bulk/get", tt.body).is(tt.want)
	}
	notText := "bulk get keys: 'At least one of the requested keys corresponds to a non-text value'"
	for _, tt := range []struct {
		body    string
		code    int
		message string
	}{
		{`{"keys":["t","bin"]}`, 10029, notText}, {`{"keys":["t"],"type":"json"}`, 10029, notText}, {`{"keys":["empty"],"type":"json"}`, 10029, notText},
		{`{"keys":[]}`, 10029, "bulk get keys: 'You must request a minimum of 1 key'"}, {`{}`, 10029, "bulk get keys: 'You must request a minimum of 1 key'"},
		{`["t"]`, 10012, "bulk get keys: 'The request body is not valid JSON'"}, {``, 10012, "bulk get keys: 'The request body is not valid JSON'"},
		{`{"keys":"t"}`, 10012, "bulk get keys: 'The request body is not valid JSON'"}, {`{"keys":[1]}`, 10012, "bulk get keys: 'A key must be a string'"},
		{`{"keys":["t"],"type":"stream"}`, 10012, "bulk get keys: 'The type must be 'text' or 'json''"},
		{`{"keys":["t"],"withMetadata":1}`, 10012, "bulk get keys: 'A field that must be true or false is neither'"},
		{`{"keys":["t"]} {}`, 10012, "bulk get keys: 'The request body is not valid JSON'"},
	} {
		w.post("bulk/get", tt.body).fails(400, tt.code, tt.message)
	}
}

func TestBulkGetBytes(t *testing.T) {
	w := newWorld(t)
	half := strings.Repeat("\x01é\"", 1000) + strings.Repeat("v", 25<<19-4000)
	w.put("values/a", half).ok()
	w.put("values/b", half).ok()
	w.put("values/c", "x").ok()
	var result struct{ Values map[string]string }
	if w.post("bulk/get", `{"keys":["a","b"]}`).result(&result); result.Values["a"] != half || result.Values["b"] != half {
		t.Error("25 MiB did not come back as they were")
	}
	w.post("bulk/get", `{"keys":["a","b","c"]}`).fails(413, 10024, "bulk get keys: 'Total size of request exceeds the limit of 25MB'")
}

// half is a store that fails for some of the writes.
type half struct {
	*memory.Store
	refuse func(kv.Write) bool
}

func (h half) PutMany(ctx context.Context, writes []kv.Write) error {
	for _, w := range writes {
		if h.refuse(w) {
			return fmt.Errorf("put %q: %w", w.Ref.Key, kv.ErrUnavailable)
		}
	}
	return h.Store.PutMany(ctx, writes)
}

func TestBulkPartly(t *testing.T) {
	w := newWorld(t, func(cfg *Config) {
		cfg.Store = half{cfg.Store.(*memory.Store), func(wr kv.Write) bool { return wr.Ref.Key >= "k1000" }}
	})
	var b strings.Builder
	for i := range 1002 {
		fmt.Fprintf(&b, `,{"key":"k%04d","value":"v"}`, i)
	}
	w.put("bulk", "["+b.String()[1:]+"]").is(`{"successful_key_count":1000,"unsuccessful_keys":["k1000","k1001"]}`)
	w.put("bulk", `[{"key":"x","value":"v"}]`).fails(503, 7010, "The service is not available at this moment. Please try again.")
}

func TestBase64(t *testing.T) {
	s := &scanner{hold: &hold{door: &door{size: 1 << 20}}}
	for text, want := range map[string]string{"": "", "YQ==": "a", "YQ": "a", "Y Q =\n=": "a", "YWI=": "ab", "YWI": "ab", "YWJj": "abc", " YWJj\t": "abc"} {
		if got, err := s.decodeBase64([]byte(text)); string(got) != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"Y", "Y===", "YQ=", "=", "====", "YWJ-", "YWJj=", "Y=Q="} {
		if got, err := s.decodeBase64([]byte(text)); err == nil {
			t.Errorf("%q is taken for %q", text, got)
		}
	}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 1000 {
		raw := make([]byte, rng.IntN(300))
		for i := range raw {
			raw[i] = byte(rng.Uint32())
		}
		if got, err := s.decodeBase64([]byte(base64.StdEncoding.EncodeToString(raw))); !bytes.Equal(got, raw) || err != nil {
			t.Fatalf("seed %d: %x became %x, %v", seed, raw, got, err)
		}
	}
}

// FuzzScan compares the scanner with encoding/json, reading in small pieces.
func FuzzScan(f *testing.F) {
	for _, text := range []string{`[]`, `{"a":[1,-2.5e+3,true,false,null,"x\u00e9\ud83d\ude00\n\/"]}`, `"\ud83d"`, `"\ud83d\u0041"`, `-0.1E-7`, ` {"":{"":[]}} `, `01`, `"a`, `{"a":1,}`, "\"\x7f\xff\""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		valid := json.Valid([]byte(text)) && utf8.ValidString(text)
		h := &hold{door: &door{size: 1 << 30}}
		s := newScanner(iotest(text), h)
		got, err := s.text(1 << 20)
		kept := string(got)
		if err == nil {
			err = s.end()
		}
		if errors.Is(err, errDeep) {
			return
		}
		if (err == nil) != valid {
			t.Fatalf("%q: %v, but valid is %v", text, err, valid)
		}
		if skipped := newScanner(iotest(text), h); (cmpErr(skipped.skip(), skipped.end()) == nil) != valid {
			t.Fatalf("%q: skip disagrees", text)
		}
		if !valid {
			return
		}
		var want bytes.Buffer
		if json.Compact(&want, []byte(text)); kept != want.String() {
			t.Fatalf("%q: text %q, want %q", text, kept, want.String())
		}
		var plain string
		if json.Unmarshal([]byte(text), &plain) == nil && strings.HasPrefix(kept, `"`) {
			if got, err := newScanner(iotest(text), h).string(1 << 20); string(got) != plain || err != nil {
				t.Fatalf("%q: string %q, %v; want %q", text, got, err, plain)
			}
		}
	})
}

// iotest reads a text in pieces of a few bytes.
func iotest(text string) io.Reader { return &pieces{text: text} }

type pieces struct {
	text string
	n    int
}

func (p *pieces) Read(buf []byte) (int, error) {
	if p.text == "" {
		return 0, io.EOF
	}
	p.n = p.n%7 + 1
	n := copy(buf, p.text[:min(p.n, len(p.text))])
	p.text = p.text[n:]
	return n, nil
}
