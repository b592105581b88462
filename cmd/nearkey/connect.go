package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

// connection is what the flags of a command say about the server to speak to.
type connection struct {
	apiURL    string
	accountID string
	tokenFile string
	data      string

	maxWait time.Duration // client.Config.MaxWait
}

func (c *connection) flags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&c.apiURL, "api-url", "", "base `URL` of the API (default: NEARKEY_API_BASE_URL, CLOUDFLARE_API_BASE_URL, or the server of --data)")
	fs.StringVar(&c.accountID, "account-id", "", "`ID` of the account (default: NEARKEY_ACCOUNT_ID, CLOUDFLARE_ACCOUNT_ID, or that of --data)")
	fs.StringVar(&c.tokenFile, "token-file", "", "`FILE` that holds the API token (default: NEARKEY_API_TOKEN, NEARKEY_API_TOKEN_FILE, CLOUDFLARE_API_TOKEN, or that of --data)")
	fs.StringVar(&c.data, "data", "", "`DIR` of the data of a server on this machine (default: NEARKEY_DATA, or "+defaultData+")")
}

// The files under the data directory through which a server tells clients on the
// same machine where it is and as whom they may come.
const (
	tokenFileName   = "api-token"
	keyFileName     = "api-key"
	accountFileName = "account-id"
	addressFileName = "listen-address"
)

// server is a server to speak to: where it is, and with which credentials.
type server struct {
	baseURL    string
	accountID  string
	token      string
	email, key string
	workersURL string // where Workers answer; empty: not known
}

// resolve finds the server. Settings of one kind belong together: the variables
// CLOUDFLARE_… are not used with the server of a data directory, nor are the
// files of a data directory with a server that is not its own, because the
// token of one server is not to be shown to another.
func (m *Main) resolve(c connection) (server, error) {
	data := firstNonEmpty(c.data, m.getenv("NEARKEY_DATA"), defaultData)
	s := server{
		accountID: firstNonEmpty(c.accountID, m.getenv("NEARKEY_ACCOUNT_ID")),
		token:     m.getenv("NEARKEY_API_TOKEN"),
		email:     m.getenv("NEARKEY_EMAIL"),
		key:       m.getenv("NEARKEY_API_KEY"),
	}
	local, localErr := localURL(data)
	given, cloudflare := m.givenURL(c)
	switch {
	case given != "":
		base, err := client.ParseBaseURL(given)
		if err != nil {
			return server{}, usageError(err)
		}
		s.baseURL = base
	case localErr != nil:
		return server{}, &exitError{exitUnreachable, localErr}
	default:
		s.baseURL = local
	}
	if err := m.tokenFromFile(c, &s); err != nil {
		return server{}, err
	}
	own := localErr == nil && s.baseURL == local
	if !own || cloudflare {
		s.accountID = firstNonEmpty(s.accountID, m.getenv("CLOUDFLARE_ACCOUNT_ID"))
		if s.token == "" && s.key == "" {
			s.token = m.getenv("CLOUDFLARE_API_TOKEN")
			s.email, s.key = firstNonEmpty(s.email, m.getenv("CLOUDFLARE_EMAIL")), m.getenv("CLOUDFLARE_API_KEY")
		}
	}
	if own {
		err := fromDataDirectory(data, &s)
		return s, err
	}
	return s, nil
}

// givenURL is the base URL that a flag or the environment names, and whether it
// is one of the variables CLOUDFLARE_… that does. A data directory that was named
// by a flag goes before the environment.
func (m *Main) givenURL(c connection) (url string, cloudflare bool) {
	if c.apiURL != "" || c.data != "" {
		return c.apiURL, false
	}
	if url = m.getenv("NEARKEY_API_BASE_URL"); url != "" {
		return url, false
	}
	url = m.getenv("CLOUDFLARE_API_BASE_URL")
	return url, url != ""
}

// tokenFromFile reads the token from the file that the flag or the environment names.
func (m *Main) tokenFromFile(c connection, s *server) error {
	file := c.tokenFile
	if file == "" && s.token == "" {
		file = m.getenv("NEARKEY_API_TOKEN_FILE")
	}
	if file == "" {
		return nil
	}
	token, err := readSecret(file)
	if err != nil {
		return usagef("token: %w", err)
	}
	s.token = token
	return nil
}

// fromDataDirectory fills in what is not known from the files of a server's data.
func fromDataDirectory(data string, s *server) (err error) {
	if s.token == "" && (s.email == "" || s.key == "") {
		if s.token, err = readSecret(filepath.Join(data, tokenFileName)); err != nil {
			return &exitError{exitDenied, fmt.Errorf("no API token: set NEARKEY_API_TOKEN, or give --token-file: %w", err)}
		}
	}
	if s.accountID == "" {
		if s.accountID, err = readSecret(filepath.Join(data, accountFileName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("account id: %w", err)
		}
	}
	if s.workersURL, err = readSecret(filepath.Join(data, addressFileName+workersSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("address of Workers: %w", err)
	}
	return nil
}

// localURL is the base URL of the server that runs on a data directory.
func localURL(data string) (string, error) {
	address, err := readSecret(filepath.Join(data, addressFileName))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no server runs on the data directory %s: start one with 'nearkey serve --data %s', or say where it is with --data or --api-url", data, data)
	}
	if err != nil {
		return "", fmt.Errorf("address of the server: %w", err)
	}
	scheme, host := "http", address
	if rest, ok := strings.CutPrefix(address, "https://"); ok {
		scheme, host = "https", rest
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return "", fmt.Errorf("address of the server in %s: %w", filepath.Join(data, addressFileName), err)
	}
	if ip := net.ParseIP(name); name == "" || ip != nil && ip.IsUnspecified() {
		name = "127.0.0.1" // every address: this one too
	}
	return client.ParseBaseURL(scheme + "://" + net.JoinHostPort(name, port))
}

// maxSecretBytes bounds what is read from a file that should hold one line.
const maxSecretBytes = 4 << 10

// readSecret reads a file of one line.
func readSecret(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(line))
	if len(line) > maxSecretBytes || text == "" || strings.ContainsAny(text, "\r\n\x00") {
		return "", fmt.Errorf("%s: want one line of text", file)
	}
	return text, nil
}

func firstNonEmpty(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}

// connect makes the client of a command.
func (m *Main) connect(ctx context.Context, c connection) (*client.Client, error) {
	s, err := m.resolve(c)
	if err != nil {
		return nil, err
	}
	if s.token == "" && (s.email == "" || s.key == "") {
		return nil, &exitError{exitDenied, fmt.Errorf("no API token for %s: set NEARKEY_API_TOKEN or CLOUDFLARE_API_TOKEN, or give --token-file", s.baseURL)}
	}
	config := client.Config{
		BaseURL: s.baseURL, AccountID: s.accountID, Token: s.token, Email: s.email, Key: s.key,
		UserAgent: "nearkey/" + buildVersion(), MaxWait: c.maxWait,
	}
	cl, err := client.New(config)
	if err != nil {
		return nil, usageError(err)
	}
	if s.accountID != "" {
		return cl, nil
	}
	accounts, err := cl.Accounts(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the account: %w", err)
	}
	if len(accounts) != 1 {
		return nil, usagef("the token sees %d accounts; say which one with --account-id", len(accounts))
	}
	config.AccountID = accounts[0].ID
	return client.New(config)
}

// target is a namespace on a server, as a command names it.
type target struct {
	connection
	namespace   string // title or id
	namespaceID string
}

func (t *target) flags(cmd *cobra.Command) {
	t.connection.flags(cmd)
	cmd.Flags().StringVarP(&t.namespace, "namespace", "n", "", "`TITLE` or id of the namespace")
	cmd.Flags().StringVar(&t.namespaceID, "namespace-id", "", "`ID` of the namespace")
	cmd.MarkFlagsMutuallyExclusive("namespace", "namespace-id")
}

// split takes the namespace from the front of the arguments if no flag named it.
// most is how many arguments there are beside it.
func (t *target) split(args []string, most int) ([]string, error) {
	if t.namespace != "" || t.namespaceID != "" {
		if len(args) > most {
			return nil, usagef("the namespace was named by a flag; %q is one argument too many", args[0])
		}
		return args, nil
	}
	if len(args) == 0 {
		return nil, usagef("which namespace? Name it with --namespace TITLE, --namespace-id ID, or as the first argument")
	}
	t.namespace = args[0]
	return args[1:], nil
}

// open connects and finds the namespace.
func (m *Main) open(ctx context.Context, t target) (*client.Client, client.Namespace, error) {
	cl, err := m.connect(ctx, t.connection)
	if err != nil {
		return nil, client.Namespace{}, err
	}
	if t.namespaceID != "" {
		return cl, client.Namespace{ID: t.namespaceID, Title: t.namespaceID}, nil
	}
	ns, err := findNamespace(ctx, cl, t.namespace)
	return cl, ns, err
}

// findNamespace finds a namespace by its id (32 hexadecimal digits) or title.
func findNamespace(ctx context.Context, cl *client.Client, name string) (client.Namespace, error) {
	if isID(name) {
		return client.Namespace{ID: strings.ToLower(name), Title: name}, nil
	}
	var titles []string
	for ns, err := range cl.Namespaces(ctx) {
		if err != nil {
			return client.Namespace{}, fmt.Errorf("find namespace %q: %w", name, err)
		}
		if ns.Title == name {
			return ns, nil
		}
		titles = append(titles, ns.Title)
	}
	return client.Namespace{}, &exitError{exitNotFound, fmt.Errorf("there is no namespace %q%s\n'nearkey namespace list' shows the namespaces there are",
		name, didYouMean(name, titles))}
}

func isID(s string) bool {
	return len(s) == 32 && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}
