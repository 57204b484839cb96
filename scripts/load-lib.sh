# Shared by the scripts that load: where the workers are.

on_compose() {  # the broker of the running stack goes into BROKER_URL, which no list of processes shows
  local container address url
  container=$(docker compose ps -q redis 2>/dev/null) || container=""
  if [ -z "$container" ]; then
    echo "${0##*/}: the stack does not run; start it: ./scripts/up" >&2
    exit 2
  fi
  # Its Redis is published nowhere. On Linux a container's own address can be reached from here.
  address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$container")
  url=$(docker compose exec -T worker-threads cat /run/sidestep/worker/broker)
  export BROKER_URL=${url/@redis:/@$address:}
}
