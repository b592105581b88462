package examples_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var ruleCount = flag.Int("rules", 100_000, "rules that the example of redirects is loaded with")

// TestRedirects: many rules by bulk load, each found; what has no rule is answered by
// the old site.
func TestRedirects(t *testing.T) {
	t.Parallel()
	playOrigin(t, "old.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "the old "+r.URL.RequestURI())
	}))
	p := deploy(t, "redirects")
	old := site("http://old.example")
	old.get(t, "/articles/7").want(t, http.StatusOK, "the old /articles/7")

	check(t, p.rules(t.Context(), "sample.json", "", "--sample", strconv.Itoa(*ruleCount)))
	var loaded struct{ Records int }
	check(t, json.Unmarshal([]byte(p.nearkey(t, "import", "redirects-rules", "sample.json", "--json")), &loaded))
	if loaded.Records != *ruleCount {
		t.Fatalf("%d rules were loaded, want %d", loaded.Records, *ruleCount)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	articles := []int{0, *ruleCount - 1}
	for range 200 {
		articles = append(articles, random.IntN(*ruleCount))
	}
	for _, i := range articles {
		old.get(t, fmt.Sprintf("/articles/%d", i)).want(t, http.StatusMovedPermanently, "").
			wantHeader(t, "Location", "https://new.example/a/"+strconv.FormatInt(int64(i), 36))
	}
	old.get(t, fmt.Sprintf("/articles/%d", *ruleCount)).want(t, http.StatusOK, "the old /articles")

	const moved = "/about,https://new.example/company\n\n/sale/, https://new.example/today?from=old, 302\n/schöne seite,/neu\n"
	check(t, p.rules(t.Context(), "rules.json", moved))
	p.nearkey(t, "import", "redirects-rules", "rules.json")
	for path, want := range map[string]struct {
		status int
		target string
	}{
		"/about":               {http.StatusMovedPermanently, "https://new.example/company"},
		"/about/?a=1&b=%20":    {http.StatusMovedPermanently, "https://new.example/company?a=1&b=%20"},
		"/sale":                {http.StatusFound, "https://new.example/today?from=old"},
		"/sale/?x":             {http.StatusFound, "https://new.example/today?from=old"},
		"/sch%C3%B6ne%20seite": {http.StatusMovedPermanently, "http://old.example/neu"},
	} {
		old.get(t, path).want(t, want.status, "").wantHeader(t, "Location", want.target)
	}
	old.get(t, "/").want(t, http.StatusOK, "the old /")
}

// rules writes what rules.mjs of the example makes of an input.
func (p *project) rules(ctx context.Context, file, input string, args ...string) error {
	out, err := os.Create(filepath.Join(p.dir, file))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, "node", append([]string{"rules.mjs"}, args...)...)
	cmd.Dir, cmd.Env = p.dir, p.env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), out, os.Stderr
	return cmd.Run()
}
