package examples_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	wranglerProgram = "../test/compat/node_modules/.bin/wrangler"
	// commandTimeout is the longest that wrangler or nearkey may take on a busy machine.
	commandTimeout = 3 * time.Minute
)

// project is a copy of the folder of an example, or of one of its folders.
type project struct {
	dir string
	env []string // of every command that runs in it
}

// copyProject copies a folder of this one. The pairs of old and new are replaced in
// its wrangler.toml: the id of a namespace that its README tells to fill in.
func copyProject(t *testing.T, folder string, oldnew ...string) *project {
	t.Helper()
	home := t.TempDir()
	p := &project{dir: filepath.Join(home, filepath.Base(folder))}
	check(t, os.CopyFS(p.dir, os.DirFS(folder)))
	config := filepath.Join(p.dir, "wrangler.toml")
	text, err := os.ReadFile(config)
	check(t, err)
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(string(text), oldnew[i]) {
			t.Fatalf("%s/wrangler.toml does not have %q", folder, oldnew[i])
		}
	}
	check(t, os.WriteFile(config, []byte(strings.NewReplacer(oldnew...).Replace(string(text))), 0o600))
	p.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CONFIG_HOME=" + home, "TMPDIR=" + home,
		"CI=1", "FORCE_COLOR=0", "WRANGLER_SEND_METRICS=false", "WRANGLER_HIDE_BANNER=true",
		"NEARKEY_DATA=" + dataDir(),
	}, shared.env...)
	return p
}

// deploy copies a folder and runs 'npx wrangler deploy' there.
func deploy(t *testing.T, folder string, oldnew ...string) *project {
	t.Helper()
	p := copyProject(t, folder, oldnew...)
	p.wrangler(t, "deploy")
	return p
}

// file writes a file into the folder and returns its name.
func (p *project) file(t *testing.T, name string, content string) string {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(p.dir, name), []byte(content), 0o600))
	return name
}

// wrangler runs wrangler in the folder when it is its turn.
func (p *project) wrangler(t *testing.T, args ...string) string {
	t.Helper()
	program, err := filepath.Abs(wranglerProgram)
	check(t, err)
	shared.turns <- struct{}{}
	defer func() { <-shared.turns }()
	return p.command(t, program, args...)
}

// nearkey runs nearkey in the folder and returns what it prints.
func (p *project) nearkey(t *testing.T, args ...string) string {
	t.Helper()
	return p.command(t, shared.binary, args...)
}

// command runs a program that must succeed. It returns its standard output without
// the space around it.
func (p *project) command(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := p.try(t.Context(), program, args...)
	check(t, err)
	return out
}

// try runs a program. The error has all that it printed.
func (p *project) try(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %q: %w\n%s%s", filepath.Base(program), args, err, out, complaints.String())
	}
	return strings.TrimSpace(string(out)), nil
}
