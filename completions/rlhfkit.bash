# bash completion for rlhfkit; made by `python -m rlhfkit.cli.docs`, not to be edited.
_rlhfkit() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} line
    local flags='' kind=none choices='' value=''
    local commands='train-tokenizer tokenize pretrain sft sample score rank exchange rank2pairs agreement train-rm ppo best-of eval-winrate plot inspect init completion'
    COMPREPLY=()
    # bash cuts --flag=value into three words
    if [[ $current == '=' ]]; then
        current=''
    elif [[ $previous == '=' ]]; then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "$commands help --help --version" -- "$current"))
        return
    fi
    case ${COMP_WORDS[1]} in
        help) kind=words choices=$commands ;;
        train-tokenizer)
            flags='-q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes --field --format --split --dry-run --vocab-size -o --output --force --config -h --help'
            kind=files choices=''
            case $previous in
                --map | --limit | --max-line-bytes | --field | --vocab-size) value=none ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --rejects | --config) value=files ;;
                --format) value=words choices='auto text jsonl' ;;
                --split) value=words choices='none blank-line' ;;
                -o | --output) value=directories ;;
            esac
            ;;
        tokenize)
            flags='-q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes --field --format --split --dry-run --tokenizer -o --output --force --shard-tokens --workers --config -h --help'
            kind=files choices=''
            case $previous in
                --map | --limit | --max-line-bytes | --field | --shard-tokens | --workers) value=none ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --rejects | -o | --output | --config) value=files ;;
                --format) value=words choices='auto text jsonl' ;;
                --split) value=words choices='none blank-line' ;;
                --tokenizer) value=directories ;;
            esac
            ;;
        pretrain)
            flags='-q --quiet --debug -o --output --force --steps --epochs --batch-size --micro-batch-size --lr --lr-schedule --warmup --weight-decay --grad-clip --max-seq-len --dtype --device --compile --no-compile --seed --save-every --keep --resume --no-resume --eval --eval-every --log-every --dry-run --tokenizer -m --model --layers --hidden --heads --kv-heads --ffn --context --tie-embeddings --config -h --help'
            kind=files choices=''
            case $previous in
                -o | --output | --tokenizer | -m | --model) value=directories ;;
                --steps | --epochs | --batch-size | --micro-batch-size | --lr | --warmup | --weight-decay | --grad-clip | --max-seq-len | --seed | --save-every | --keep | --eval-every | --log-every | --layers | --hidden | --heads | --kv-heads | --ffn | --context) value=none ;;
                --lr-schedule) value=words choices='cosine linear constant' ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --device) value=words choices='auto cpu cuda' ;;
                --eval | --config) value=files ;;
            esac
            ;;
        sft)
            flags='-q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes -o --output --force --steps --epochs --batch-size --micro-batch-size --lr --lr-schedule --warmup --weight-decay --grad-clip --max-seq-len --dtype --device --compile --no-compile --seed --save-every --keep --resume --no-resume --eval --eval-every --log-every --dry-run -m --model --loss-on --packing --no-packing --mix --mix-fraction --save-epochs --config -h --help'
            kind=files choices=''
            case $previous in
                --map | --limit | --max-line-bytes | --steps | --epochs | --batch-size | --micro-batch-size | --lr | --warmup | --weight-decay | --grad-clip | --max-seq-len | --seed | --save-every | --keep | --eval-every | --log-every | --mix-fraction) value=none ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --rejects | --eval | --mix | --config) value=files ;;
                -o | --output | -m | --model) value=directories ;;
                --lr-schedule) value=words choices='cosine linear constant' ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --device) value=words choices='auto cpu cuda' ;;
                --loss-on) value=words choices='completion all' ;;
            esac
            ;;
        sample)
            flags='-q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes -o --output --force -m --model --name -n --n --max-new-tokens --temperature --top-p --top-k --greedy --stop --prepend --truncate-prompts --seed --batch-size --dtype --device --dry-run --config -h --help'
            kind=files choices=''
            case $previous in
                --map | --limit | --max-line-bytes | --name | -n | --n | --max-new-tokens | --temperature | --top-p | --top-k | --stop | --seed | --batch-size) value=none ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --rejects | -o | --output | --prepend | --config) value=files ;;
                -m | --model) value=directories ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --device) value=words choices='auto cpu cuda' ;;
            esac
            ;;
        score)
            flags='--scorer-timeout --scorer-restarts --per-token --batch-tokens --judge-model --judge-cache --max-requests --concurrency --device --dtype -q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes -o --output --force -r --reward --batch-size --config -h --help'
            kind=files choices=''
            case $previous in
                --scorer-timeout | --scorer-restarts | --batch-tokens | --judge-model | --max-requests | --concurrency | --map | --limit | --max-line-bytes | --batch-size) value=none ;;
                --judge-cache | --rejects | -o | --output | --config) value=files ;;
                --device) value=words choices='auto cpu cuda' ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --on-bad-line) value=words choices='stop skip' ;;
                -r | --reward) value=directories ;;
            esac
            ;;
        rank)
            flags='--scorer-timeout --scorer-restarts --per-token --batch-tokens --judge-model --judge-cache --max-requests --concurrency --device --dtype -q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes -o --output --force --by --tie-margin --noise --seed --rater --web --tty --finish --overlap --journal --port --browser --no-browser --batch-size --config -h --help'
            kind=files choices=''
            case $previous in
                --scorer-timeout | --scorer-restarts | --batch-tokens | --judge-model | --max-requests | --concurrency | --map | --limit | --max-line-bytes | --tie-margin | --noise | --seed | --rater | --overlap | --port | --batch-size) value=none ;;
                --judge-cache | --rejects | -o | --output | --journal | --config) value=files ;;
                --device) value=words choices='auto cpu cuda' ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --by) value=directories ;;
            esac
            ;;
        exchange)
            flags='-q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes --rank-order -o --output --force --from-format --from --to-format --to --config -h --help'
            kind=files choices=''
            case $previous in
                --map | --limit | --max-line-bytes) value=none ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --rejects | -o | --output | --config) value=files ;;
                --rank-order) value=words choices='order ranks' ;;
                --from-format | --from | --to-format | --to) value=words choices='label-studio argilla' ;;
            esac
            ;;
        rank2pairs)
            flags='-q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes --rank-order -o --output --force --pairs --max-pairs --from-format --from --margin --seed --config -h --help'
            kind=files choices=''
            case $previous in
                --map | --limit | --max-line-bytes | --max-pairs | --seed) value=none ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --rejects | -o | --output | --config) value=files ;;
                --rank-order) value=words choices='order ranks' ;;
                --pairs) value=words choices='all adjacent best-worst' ;;
                --from-format | --from) value=words choices='label-studio argilla' ;;
            esac
            ;;
        agreement)
            flags='-q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes --rank-order --bootstrap --seed --config -h --help'
            kind=files choices=''
            case $previous in
                --map | --limit | --max-line-bytes | --bootstrap | --seed) value=none ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --rejects | --config) value=files ;;
                --rank-order) value=words choices='order ranks' ;;
            esac
            ;;
        train-rm)
            flags='-q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes --rank-order -o --output --force --steps --epochs --batch-size --micro-batch-size --lr --lr-schedule --warmup --weight-decay --grad-clip --max-seq-len --dtype --device --compile --no-compile --seed --save-every --keep --resume --no-resume --eval --eval-every --log-every --dry-run -m --model --loss --center-coef --margin --center-on --center-scale --head-std --config -h --help'
            kind=files choices=''
            case $previous in
                --map | --limit | --max-line-bytes | --steps | --epochs | --batch-size | --micro-batch-size | --lr | --warmup | --weight-decay | --grad-clip | --max-seq-len | --seed | --save-every | --keep | --eval-every | --log-every | --center-coef | --head-std) value=none ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --rejects | --eval | --center-on | --config) value=files ;;
                --rank-order) value=words choices='order ranks' ;;
                -o | --output | -m | --model) value=directories ;;
                --lr-schedule) value=words choices='cosine linear constant' ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --device) value=words choices='auto cpu cuda' ;;
                --loss) value=words choices='pairwise best-of-k' ;;
                --center-scale) value=words choices='off after both' ;;
            esac
            ;;
        ppo)
            flags='--scorer-timeout --scorer-restarts --per-token --batch-tokens --judge-model --judge-cache --max-requests --concurrency --device --dtype -q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes -o --output --force --steps --epochs --batch-size --micro-batch-size --lr --lr-schedule --warmup --weight-decay --grad-clip --max-seq-len --compile --no-compile --seed --save-every --keep --resume --no-resume --eval --eval-every --log-every --dry-run -m --model -r --reward --eval-reward --ref --value-model --value-head --value-lr --adam-eps --log-samples --preset --kl-coef --kl-target --kl-horizon --kl-estimator --minibatches --ppo-epochs --max-new-tokens --temperature --clip-eps --value-clip-eps --value-coef --gamma --gae-lambda --whiten --whiten-rewards --loss-mean --missing-eos-penalty --missing-eos --min-response --reward-scale --reward-shift --reward-clip --stop-kl --ema-decay --ptx --ptx-coef --ptx-batch-size --config -h --help'
            kind=files choices=''
            case $previous in
                --scorer-timeout | --scorer-restarts | --batch-tokens | --judge-model | --max-requests | --concurrency | --map | --limit | --max-line-bytes | --steps | --epochs | --batch-size | --micro-batch-size | --lr | --warmup | --weight-decay | --grad-clip | --max-seq-len | --seed | --save-every | --keep | --eval-every | --log-every | --value-lr | --adam-eps | --log-samples | --kl-coef | --kl-target | --kl-horizon | --minibatches | --ppo-epochs | --max-new-tokens | --temperature | --clip-eps | --value-clip-eps | --value-coef | --gamma | --gae-lambda | --missing-eos-penalty | --min-response | --reward-clip | --stop-kl | --ema-decay | --ptx-coef | --ptx-batch-size) value=none ;;
                --judge-cache | --rejects | --eval | --ptx | --config) value=files ;;
                --device) value=words choices='auto cpu cuda' ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --on-bad-line) value=words choices='stop skip' ;;
                -o | --output | -m | --model | -r | --reward | --eval-reward | --ref | --value-model) value=directories ;;
                --lr-schedule) value=words choices='cosine linear constant' ;;
                --value-head) value=words choices='keep zero' ;;
                --preset) value=words choices='instructgpt stiennon ziegler nplus gao' ;;
                --kl-estimator) value=words choices='k1 k2 k3' ;;
                --whiten) value=words choices='batch minibatch none' ;;
                --loss-mean) value=words choices='tokens responses length' ;;
                --missing-eos) value=words choices='replace subtract off' ;;
                --reward-scale) value=words choices='none batch running first' ;;
            esac
            ;;
        best-of)
            flags='--scorer-timeout --scorer-restarts --per-token --batch-tokens --judge-model --judge-cache --max-requests --concurrency --device --dtype -q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes -o --output --force --by -n --n --gold --curve --batch-size --config -h --help'
            kind=files choices=''
            case $previous in
                --scorer-timeout | --scorer-restarts | --batch-tokens | --judge-model | --max-requests | --concurrency | --map | --limit | --max-line-bytes | -n | --n | --gold | --batch-size) value=none ;;
                --judge-cache | --rejects | -o | --output | --curve | --config) value=files ;;
                --device) value=words choices='auto cpu cuda' ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --by) value=directories ;;
            esac
            ;;
        eval-winrate)
            flags='--scorer-timeout --scorer-restarts --per-token --batch-tokens --judge-model --judge-cache --max-requests --concurrency --device --dtype -q --quiet --debug --map --on-bad-line --rejects --limit --max-line-bytes -o --output --force --judge --judgements --save-judgements --canary --baseline --name --by --length-control --difficulty --bootstrap --ties --prior --seed --dry-run --config -h --help'
            kind=files choices=''
            case $previous in
                --scorer-timeout | --scorer-restarts | --batch-tokens | --judge-model | --max-requests | --concurrency | --map | --limit | --max-line-bytes | --baseline | --name | --by | --bootstrap | --prior | --seed) value=none ;;
                --judge-cache | --rejects | -o | --output | --judgements | --save-judgements | --config) value=files ;;
                --device) value=words choices='auto cpu cuda' ;;
                --dtype) value=words choices='auto float32 bfloat16' ;;
                --on-bad-line) value=words choices='stop skip' ;;
                --judge) value=directories ;;
                --ties) value=words choices='half drop' ;;
            esac
            ;;
        plot)
            flags='-q --quiet --debug -o --output --force --kind -y --y -x --x --smooth --name --title --sqrt-kl --fit --width --config -h --help'
            kind=files choices=''
            case $previous in
                -o | --output | --config) value=files ;;
                --kind) value=words choices='auto curves winrate ratings matrix kl calibration' ;;
                -y | --y | -x | --x | --smooth | --name | --title | --width) value=none ;;
            esac
            ;;
        inspect)
            flags='-q --quiet --debug --json --config -h --help'
            kind=files choices=''
            case $previous in
                --config) value=files ;;
            esac
            ;;
        init)
            flags='-q --quiet --debug --seed --scale --force --config -h --help'
            kind=files choices=''
            case $previous in
                --seed | --scale) value=none ;;
                --config) value=files ;;
            esac
            ;;
        completion)
            flags='-q --quiet --debug --config -h --help'
            kind=words choices='bash zsh fish'
            case $previous in
                --config) value=files ;;
            esac
            ;;
    esac
    if [[ -n $value ]]; then
        kind=$value
    elif [[ $current == -* ]]; then
        kind=words choices=$flags
    fi
    case $kind in
        words) COMPREPLY=($(compgen -W "$choices" -- "$current")) ;;
        files | directories)
            compopt -o filenames 2>/dev/null
            [[ $kind == files ]] && kind=-f || kind=-d
            while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen "$kind" -- "$current")
            ;;
    esac
}
complete -F _rlhfkit rlhfkit
