package fleet

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// expected is what a reader must see of a key.
type expected struct {
	value      string
	exists     bool
	expiration int64
	metadata   string // JSON text; "null" for none
}

// checker writes through one edge and reads at once through another, and counts
// the reads that do not tell what was written.
type checker struct {
	writer, reader *edge
	space          space
	rng            *rand.Rand
	keys           map[string]expected
	violations     []string
}

func newChecker(t *testing.T, writer, reader *edge, s space) *checker {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &checker{writer: writer, reader: reader, space: s, rng: rand.New(rand.NewPCG(seed, 0)), keys: map[string]expected{}}
}

// run makes rounds of a write and a read of each key that it wrote, while others
// read the same keys through all edges, so that copies of old values are about.
func (c *checker) run(t *testing.T, rounds int) {
	t.Helper()
	const keys = 4
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("few/%d %%é", i)
	}
	stop := make(chan struct{})
	var noise sync.WaitGroup
	for _, e := range c.writer.edges {
		noise.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					_, _ = e.get(c.space, names[i%keys]) // whatever it is
				}
			}
		})
	}
	defer noise.Wait()
	defer close(stop)
	for i := range rounds {
		for _, key := range c.write(t, names, i) {
			c.check(t, key)
		}
	}
}

// write makes a random write and returns the keys that it wrote.
func (c *checker) write(t *testing.T, names []string, round int) []string {
	t.Helper()
	key, value := names[c.rng.IntN(len(names))], "value of round "+strconv.Itoa(round)
	expiration := time.Now().Unix() + 3600 + int64(c.rng.IntN(1000))
	switch c.rng.IntN(5) {
	case 0: // a value
		c.writer.put(t, c.space, key, value)
		c.keys[key] = expected{value: value, exists: true, metadata: "null"}
	case 1: // the same value with another expiration
		value = c.keys[key].value
		c.writer.must(t, "PUT", c.writer.valuePath(c.space, key)+"?expiration="+strconv.FormatInt(expiration, 10), []byte(value), nil)
		c.keys[key] = expected{value: value, exists: true, expiration: expiration, metadata: "null"}
	case 2:
		c.writer.must(t, "DELETE", c.writer.valuePath(c.space, key), nil, nil)
		c.keys[key] = expected{}
	case 3: // all keys at once
		var pairs []map[string]any
		for _, name := range names {
			pairs = append(pairs, map[string]any{"key": name, "value": value, "expiration": expiration, "metadata": round})
			c.keys[name] = expected{value: value, exists: true, expiration: expiration, metadata: strconv.Itoa(round)}
		}
		c.writer.must(t, "PUT", c.writer.spacePath(c.space)+"/bulk", pairs, nil)
		return names
	case 4:
		c.writer.must(t, "DELETE", c.writer.spacePath(c.space)+"/bulk", names[:2], nil)
		c.keys[names[0]], c.keys[names[1]] = expected{}, expected{}
		return names[:2]
	}
	return []string{key}
}

// check reads a key and, every so often, its metadata or a list.
func (c *checker) check(t *testing.T, key string) {
	t.Helper()
	want := c.keys[key]
	c.checkValue(t, key, want)
	switch c.rng.IntN(4) {
	case 0:
		c.checkMetadata(t, key, want)
	case 1:
		c.checkList(t, key, want)
	}
}

func (c *checker) checkValue(t *testing.T, key string, want expected) {
	t.Helper()
	a, err := c.reader.get(c.space, key)
	if err != nil {
		t.Fatalf("%s: %v", c.reader.name, err)
	}
	switch {
	case !want.exists && a.status == http.StatusNotFound:
	case !want.exists || a.status != http.StatusOK || string(a.body) != want.value || expirationOf(a) != want.expiration:
		c.violation("get of %s: %s, expiration %d; want %+v", key, a, expirationOf(a), want)
	}
}

func (c *checker) checkMetadata(t *testing.T, key string, want expected) {
	t.Helper()
	path := strings.Replace(c.reader.valuePath(c.space, key), "/values/", "/metadata/", 1)
	a, err := c.reader.ask(c.reader.token, "GET", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Result json.RawMessage }
	_ = json.Unmarshal(a.body, &got) // of an error there is no result
	if want.exists && (a.status != http.StatusOK || string(got.Result) != want.metadata) || !want.exists && a.status != http.StatusNotFound {
		c.violation("metadata of %s: %s; want %+v", key, a, want)
	}
}

func (c *checker) checkList(t *testing.T, key string, want expected) {
	t.Helper()
	var keys []struct {
		Name       string
		Expiration int64
	}
	c.reader.must(t, "GET", c.reader.spacePath(c.space)+"/keys?prefix=few/", nil, &keys)
	for _, k := range keys {
		if k.Name == key {
			if !want.exists || k.Expiration != want.expiration {
				c.violation("list of %s: expiration %d; want %+v", key, k.Expiration, want)
			}
			return
		}
	}
	if want.exists {
		c.violation("list: %s is missing; want %+v", key, want)
	}
}

func (c *checker) violation(format string, args ...any) {
	c.violations = append(c.violations, fmt.Sprintf(format, args...))
}

func expirationOf(a answer) int64 {
	n, _ := strconv.ParseInt(a.header.Get("Expiration"), 10, 64) // 0: none
	return n
}
