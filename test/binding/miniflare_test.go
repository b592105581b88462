package binding_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const miniflare = "../compat/node_modules/miniflare/dist/src/index.js"

// otherwise are the cases in which Miniflare, the simulator that comes with
// wrangler, does something else, and why.
var otherwise = map[string]string{
	`key: "__proto__"`:              "it makes a JavaScript object of the answer",
	"bulk: names that objects have": "it makes a JavaScript object of the answer",
	`key: "\u0000"`:                 "its prefixes end at that character",
	"bulk: a value that is no text": "it replaces what is no text, where production refuses",
	"list: what is no cursor":       "it takes every cursor",
	"a token that is not known":     "it has no tokens",
	"near: a copy is as old as its": "nothing is near",
	"near: cacheStatus of what":     "nothing is near",
}

// TestMiniflare is a second opinion on the cases: Miniflare passes them as well,
// texts of errors included, but for those that it is known not to.
func TestMiniflare(t *testing.T) {
	t.Parallel()
	module, err := filepath.Abs(miniflare)
	if err == nil {
		_, err = os.Stat(module)
	}
	if err != nil {
		t.Fatalf("no Miniflare: run `make deps` (%v)", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "miniflare.mjs", module)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + t.TempDir()}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	ran, seen := 0, map[string]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); ran++ {
		var c struct{ Name, Error string }
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		prefix, ok := known(c.Name)
		switch {
		case c.Error != "" && ok:
			seen[prefix] = true
		case c.Error != "":
			t.Errorf("%s: %s", c.Name, c.Error)
		}
	}
	for prefix, why := range otherwise {
		if !seen[prefix] {
			t.Errorf("%s: Miniflare passes it by now, though %s", prefix, why)
		}
	}
	if ran < 100 {
		t.Errorf("only %d cases ran: %s", ran, stderr.String())
	}
}

// known finds a case among those.
func known(name string) (prefix string, ok bool) {
	for prefix := range otherwise {
		if strings.HasPrefix(name, prefix) {
			return prefix, true
		}
	}
	return "", false
}
