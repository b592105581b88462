package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nearkey/nearkey/catalog"
)

// ensureRoot makes the account and the root credentials what the configuration,
// the environment and the data directory say, and returns the account's id.
//
// A crash leaves some of the files written: the next start goes on with them.
func (m *Main) ensureRoot(ctx context.Context, config Config, cat *catalog.Catalog) (string, error) {
	token, err := m.secret("NEARKEY_API_TOKEN", config.APITokenFile, filepath.Join(config.Data, tokenFileName))
	if err != nil {
		return "", fmt.Errorf("root API token: %w", err)
	}
	key, err := m.secret("NEARKEY_API_KEY", config.APIKeyFile, filepath.Join(config.Data, keyFileName))
	if err != nil {
		return "", fmt.Errorf("API key: %w", err)
	}
	accountFile := filepath.Join(config.Data, accountFileName)
	kept, err := readSecret(accountFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("account id: %w", err)
	}
	account, err := cat.EnsureRoot(ctx, catalog.Root{
		AccountID: firstNonEmpty(config.AccountID, kept), Token: token, Email: config.Email, Key: key,
	})
	if err != nil {
		return "", fmt.Errorf("root account: %w", err)
	}
	if account.ID != kept {
		if err := writeFile(accountFile, []byte(account.ID+"\n"), 0o644); err != nil {
			return "", fmt.Errorf("account id: %w", err)
		}
	}
	return account.ID, nil
}

// secret is a root credential: the value of a variable, else the line of a file
// that was named, else that of a file of the data directory, which is written if
// it does not exist.
func (m *Main) secret(variable, named, own string) (string, error) {
	if text := m.getenv(variable); text != "" {
		if named != "" {
			return "", usagef("it is given twice, by the variable %s and by the file %s; give it once", variable, named)
		}
		return text, nil
	}
	if named != "" {
		text, err := readSecret(named)
		if err != nil {
			return "", usageError(err)
		}
		return text, nil
	}
	info, err := os.Stat(own)
	if errors.Is(err, fs.ErrNotExist) {
		text := catalog.NewSecret()
		return text, writeFile(own, []byte(text+"\n"), 0o600)
	}
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", usagef("others can read %s (mode %04o); if nobody has, do: chmod 600 %s", own, info.Mode().Perm(), own)
	}
	return readSecret(own)
}
