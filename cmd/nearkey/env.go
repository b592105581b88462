package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (m *Main) envCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
		shell  string
	)
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the variables that point wrangler and other clients at the server",
		Long: `Print the variables that point wrangler and the Cloudflare SDKs at the server of
the data directory, as export lines for a shell to evaluate. The API token is
among them: do not print them where others can read.`,
		Example: `  eval "$(nearkey env)"
  nearkey env --shell fish | source
  nearkey env --shell powershell | Invoke-Expression`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return m.printEnv(cmd.Context(), conn, shell, asJSON)
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().StringVar(&shell, "shell", "sh", "`SHELL` that evaluates them: sh (and bash, zsh), fish or powershell")
	return cmd
}

func (m *Main) printEnv(ctx context.Context, conn connection, shell string, asJSON bool) error {
	s, err := m.resolve(conn)
	if err != nil {
		return err
	}
	if s.accountID == "" {
		cl, err := m.connect(ctx, conn)
		if err != nil {
			return err
		}
		s.accountID = cl.AccountID()
	}
	variables := [][2]string{
		{"CLOUDFLARE_API_BASE_URL", s.baseURL},
		{"CLOUDFLARE_API_TOKEN", s.token},
		{"CLOUDFLARE_ACCOUNT_ID", s.accountID},
	}
	if s.token == "" {
		variables[1] = [2]string{"CLOUDFLARE_API_KEY", s.key}
		variables = append(variables, [2]string{"CLOUDFLARE_EMAIL", s.email})
	}
	if s.workersURL != "" {
		variables = append(variables, [2]string{"NEARKEY_WORKERS_URL", s.workersURL})
	}
	if asJSON {
		object := map[string]string{}
		for _, v := range variables {
			object[v[0]] = v[1]
		}
		return m.printJSON(object)
	}
	for _, v := range variables {
		line, err := exportLine(shell, v[0], v[1])
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(m.Stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// exportLine sets a variable in the language of a shell.
func exportLine(shell, name, value string) (string, error) {
	switch shell {
	case "sh", "bash", "zsh":
		return "export " + name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'", nil
	case "fish":
		return "set -gx " + name + " '" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(value) + "'", nil
	case "powershell", "pwsh":
		return "$env:" + name + " = '" + strings.ReplaceAll(value, "'", "''") + "'", nil
	}
	return "", usagef("--shell %q: want sh, fish or powershell%s", shell, didYouMean(shell, []string{"sh", "bash", "zsh", "fish", "powershell"}))
}
