def test_a(pretrained, finetuned, capsys):
    import torch
    for e in ("ssamba","ssast"):
        p=finetuned(e)
        import subprocess
        print(subprocess.run(f"find {p} -type f; cat {p}/metrics.csv {p}/run.json {p}/recipe.yaml; cat {pretrained(e)}/metrics.csv; cat {p}/model/config.json {p}/test/*.csv {p}/test/*.json", shell=True, capture_output=True, text=True).stdout)
        for c in ("last","best"): 
            k=torch.load(p/f"checkpoints/{c}.ckpt", weights_only=True); print(c, k["global_step"], list(k))
