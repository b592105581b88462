package nearkeytest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Workerd returns the path of the pinned workerd, which make deps installs, wherever
// in the repository a test runs.
func Workerd() (path string, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	arch := map[string]string{"amd64": "64", "arm64": "arm64"}[runtime.GOARCH]
	for {
		project := filepath.Join(dir, "test", "workerd")
		if _, err := os.Stat(filepath.Join(project, "package.json")); err == nil {
			path = filepath.Join(project, "node_modules", "@cloudflare", "workerd-"+runtime.GOOS+"-"+arch, "bin", "workerd")
			if _, err := os.Stat(path); err != nil {
				return "", fmt.Errorf("no Workers runtime: run make deps (%w)", err)
			}
			return path, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no Workers runtime: not in the repository")
		}
		dir = parent
	}
}

// NeedWorkerd is Workerd for a test that cannot go on without it.
func NeedWorkerd(tb TB) string {
	tb.Helper()
	path, err := Workerd()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return path
}
