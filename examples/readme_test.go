package examples_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every example is listed, tells how it is deployed and used, and has a test.
func TestExamplesAreTold(t *testing.T) {
	list := read(t, "README.md")
	folders, err := os.ReadDir(".")
	check(t, err)
	for _, f := range folders {
		if !f.IsDir() {
			continue
		}
		name := f.Name()
		if !strings.Contains(list, "("+name+")") {
			t.Errorf("README.md does not link to %s", name)
		}
		readme := read(t, filepath.Join(name, "README.md"))
		for _, part := range []string{"\n## Deploy\n", "\n## Use\n", "\n## What to look at\n", "nearkey env", "npx wrangler deploy"} {
			if !strings.Contains(readme, part) {
				t.Errorf("%s/README.md lacks %q", name, part)
			}
		}
		if _, err := os.Stat(strings.ReplaceAll(name, "-", "_") + "_test.go"); err != nil {
			t.Errorf("%s has no test: %v", name, err)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	check(t, err)
	return string(text)
}
