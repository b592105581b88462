package assets

import (
	"net/http"
	"strings"
)

// found is what a path leads to: a file, a redirect to another path, or nothing.
type found struct {
	file     File
	status   int
	redirect string
}

func (f found) ok() bool { return f.file.Hash != "" || f.redirect != "" }

// A step is a file that a path may lead to: it answers at this path, or the client
// is sent to another at which it answers.
type step struct{ file, to string }

func at(file string) step           { return step{file: file} }
func moved(file, to string) step    { return step{file, to} }
func trim(path, end string) string  { return path[:len(path)-len(end)] }
func ends(path, suffix string) bool { return strings.HasSuffix(path, suffix) }

// steps are what a path may lead to, in order.
func steps(html, path string) []step {
	switch html {
	case AutoTrailingSlash:
		return append(autoSteps(path), at(path), at(path+".html"), moved(path+"/index.html", path+"/"))
	case ForceTrailingSlash:
		return append(forceSteps(path), at(path), moved(path+".html", path+"/"), moved(path+"/index.html", path+"/"))
	case DropTrailingSlash:
		return append(dropSteps(path), at(path), at(path+".html"), at(path+"/index.html"))
	}
	return []step{at(path)}
}

func autoSteps(path string) []step {
	switch {
	case ends(path, "/index"):
		base := trim(path, "/index")
		return []step{at(path), moved(path+".html", base+"/"), moved(base+".html", base)}
	case ends(path, "/index.html"):
		base := trim(path, "/index.html")
		return []step{moved(path, base+"/"), moved(base+".html", base)}
	case ends(path, "/"):
		base := trim(path, "/")
		return []step{at(path + "index.html"), moved(base+".html", base)}
	case ends(path, ".html"):
		base := trim(path, ".html")
		return []step{moved(path, base), moved(base+"/index.html", base+"/")}
	}
	return nil
}

func forceSteps(path string) []step {
	switch {
	case ends(path, "/index"):
		base := trim(path, "/index")
		return []step{at(path), moved(path+".html", base+"/"), moved(base+".html", base+"/")}
	case ends(path, "/index.html"):
		base := trim(path, "/index.html")
		return []step{moved(path, base+"/"), moved(base+".html", base+"/")}
	case ends(path, "/"):
		return []step{at(path + "index.html"), at(trim(path, "/") + ".html")}
	case ends(path, ".html"):
		base := trim(path, ".html")
		return []step{moved(path, base+"/"), at(path), moved(base+"/index.html", base+"/")}
	}
	return nil
}

func dropSteps(path string) []step {
	switch {
	case path == "/index":
		return []step{at(path), moved("/index.html", "/")}
	case ends(path, "/index"):
		base := trim(path, "/index")
		return []step{at(path), moved(base+".html", base), moved(path+".html", base)}
	case path == "/index.html":
		return []step{moved(path, "/")}
	case ends(path, "/index.html"):
		base := trim(path, "/index.html")
		return []step{moved(path, base), at(path), moved(base+".html", base)}
	case path == "/":
		return []step{at("/index.html")}
	case ends(path, "/"):
		base := trim(path, "/")
		return []step{moved(base+".html", base), moved(base+"/index.html", base)}
	case ends(path, ".html"):
		base := trim(path, ".html")
		return []step{moved(path, base), moved(base+"/index.html", base)}
	}
	return nil
}

// resolve finds what a path leads to that is not encoded. A client is sent to
// another path only if the file answers there, at once.
func (s *Site) resolve(path, notFound string, redirects bool) found {
	for _, step := range steps(s.html, path) {
		file, ok := s.find(step.file)
		switch {
		case !ok:
		case step.to == "":
			return found{file: file, status: http.StatusOK}
		case redirects && s.leads(step.to, file, notFound):
			return found{redirect: step.to}
		}
	}
	return s.nothing(path, notFound)
}

// leads reports whether a file answers at a path that is not its own.
func (s *Site) leads(path string, file File, notFound string) bool {
	if _, taken := s.find(path); taken {
		return false
	}
	return s.resolve(path, notFound, false).file.Hash == file.Hash
}

// nothing is what answers at a path where there is no file.
func (s *Site) nothing(path, handling string) found {
	switch handling {
	case SinglePage:
		if file, ok := s.find("/index.html"); ok {
			return found{file: file, status: http.StatusOK}
		}
	case NotFoundPage:
		path = path[:min(len(path), MaxPathBytes)] // no folder has a longer name
		for path != "" {
			path = path[:max(strings.LastIndexByte(path, '/'), 0)]
			if file, ok := s.find(path + "/404.html"); ok {
				return found{file: file, status: http.StatusNotFound}
			}
		}
	}
	return found{}
}
