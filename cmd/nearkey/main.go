// Command nearkey is a self-hosted Workers KV in one binary: the server, and a
// command line that speaks to it or to any other server of the same API.
//
// This is the only place where the parts meet. What it may lose: the output of a
// command that is interrupted; an interrupted import or export goes on where it
// was (--resume).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// version is set by the linker.
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	m := Main{Name: os.Args[0], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ()}
	code := m.Run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// Main is the program with all that it touches, so that a test can run it.
type Main struct {
	Name    string // as it was called; empty: nearkey
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Environ []string // NAME=value
}

// called is the program as a word of a shell that starts it again.
func (m *Main) called() string {
	switch {
	case m.Name == "":
		return "nearkey"
	case strings.ContainsAny(m.Name, " '\"\\$`"):
		return quoted(m.Name)
	}
	return m.Name
}

// Run runs one command and returns its exit code.
func (m *Main) Run(ctx context.Context, args []string) int {
	root := m.rootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	fmt.Fprintf(m.Stderr, "nearkey: %s\n", describe(ctx, err))
	if code == exitUsage {
		fmt.Fprintf(m.Stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return code
}

const rootHelp = `nearkey is a self-hosted Workers KV, with the Workers that read it. Existing
clients (wrangler, the Cloudflare SDKs, Terraform, curl) work against it unchanged;
only the base URL differs.

Start a server, and point this shell and its wrangler at it:

  nearkey serve &
  eval "$(nearkey env)"
  wrangler kv namespace list
  wrangler deploy                # in the folder of a Worker

The commands below speak to the server of ./nearkey-data (--data names another),
to the one in NEARKEY_API_BASE_URL or CLOUDFLARE_API_BASE_URL, or to the one
given with --api-url, be it nearkey or Cloudflare.

Exit codes:
  0  done
  1  failed
  2  wrong usage: arguments, flags or configuration
  3  not found: the key, namespace, token or Worker does not exist
  4  not authorised: credentials are missing, not accepted, or lack a right
  5  the server cannot be reached or is overloaded
  6  done in part: some records were refused; they are named on stderr`

func (m *Main) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "nearkey",
		Short:         "A self-hosted Workers KV",
		Long:          rootHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       buildVersion(),
	}
	group(root)
	root.SetVersionTemplate("nearkey {{.Version}}\n")
	root.SetIn(m.Stdin)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(
		m.serveCommand(), m.devCommand(), m.configCommand(), m.envCommand(),
		m.namespaceCommand(), m.kvCommand(), m.tokenCommand(),
		m.exportCommand(), m.importCommand(),
		m.workersCommand(), m.tailCommand(), m.cronCommand(),
		m.verifyCommand(), m.repairCommand(), m.providersCommand(), m.shardsCommand(), m.backupCommand(), m.restoreCommand(), m.versionCommand(),
	)
	return root
}

// group makes a command that only holds others: without arguments it shows its
// help, and a word that is none of its commands is an error with suggestions.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		text := fmt.Sprintf("%q is not a command of '%s'", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
		}
		return usageError(errors.New(text))
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// args wraps a check of cobra's so that its error is one of usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError(fmt.Errorf("%w; want: %s", err, cmd.UseLine()))
		}
		return nil
	}
}

// getenv is a variable of the environment. Of one that is set twice the last counts.
func (m *Main) getenv(name string) string {
	value := ""
	for _, v := range m.Environ {
		if k, text, _ := strings.Cut(v, "="); k == name {
			value = text
		}
	}
	return value
}

// say writes a message for people.
func (m *Main) say(format string, args ...any) {
	fmt.Fprintf(m.Stderr, format+"\n", args...)
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// buildVersion is what the linker set, or what the module system knows.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "dev"
}
