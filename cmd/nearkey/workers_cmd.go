package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (m *Main) workersCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "workers",
		Aliases: []string{"worker"},
		Short:   "List Workers; wrangler deploys and deletes them",
		Example: "  nearkey workers list",
	})
	cmd.AddCommand(m.workersListCommand())
	return cmd
}

// workerJSON is a Worker as --json shows it.
type workerJSON struct {
	Name     string    `json:"name"`
	Handlers []string  `json:"handlers"`
	Created  time.Time `json:"created_on"`
	Modified time.Time `json:"modified_on"`
	From     string    `json:"last_deployed_from"`
}

func (m *Main) workersListCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the Workers of the account",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			workers, err := cl.Workers(cmd.Context())
			if err != nil {
				return fmt.Errorf("list Workers: %w", err)
			}
			rows := m.rows(asJSON, "NAME", "HANDLERS", "MODIFIED", "FROM")
			for _, w := range workers {
				if err := rows.add(workerJSON(w), w.Name, strings.Join(w.Handlers, " "), w.Modified.UTC().Format(time.RFC3339), w.From); err != nil {
					return err
				}
			}
			return rows.close()
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}
