package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// files returns the npm packages of the compat tests if they are installed, or
// else a directory of made-up files.
func files(t *testing.T) string {
	t.Helper()
	packages := filepath.Join("..", "compat", "node_modules")
	if _, err := os.Stat(packages); err == nil && !testing.Short() {
		return packages
	}
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		path := filepath.Join(dir, fmt.Sprintf("package %d", i%50), fmt.Sprintf("file %d.js", i))
		data := make([]byte, rng.IntN(2000))
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDemo(t *testing.T) {
	var out bytes.Buffer
	err := run(context.Background(), files(t), &out)
	t.Log("\n" + out.String())
	if err != nil {
		t.Error(err)
	}
}
