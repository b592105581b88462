package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func (m *Main) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			platform := runtime.GOOS + "/" + runtime.GOARCH
			if asJSON {
				return m.printJSON(map[string]string{"version": buildVersion(), "go": runtime.Version(), "platform": platform})
			}
			_, err := fmt.Fprintf(m.Stdout, "nearkey %s (%s, %s)\n", buildVersion(), runtime.Version(), platform)
			return err
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}
